package millrace

// LiveCollection holds, in partition 0 and by a projection's name, which generation of its documents readers see: the
// member generation. Where there is no document, it is the first, 1.
const LiveCollection = "projections.live"

// GenerationMark stands between the name of a projection and the number of a generation, in the name of the consumer
// that makes it: orders@1.
const GenerationMark = "@"

// Reports declare read models as tables, for those who ask a backend in SQL. A domain says what the columns are, and the
// backend makes the views: the one knows no SQL, the other no domain.
type Reports struct {
	// Name tells the set from those of other domains.
	Name string
	// Version rises with each change of the views. Of programs with several, the newest one's are there.
	Version int
	Views   []ReportView
}

// ReportView declares a view: a row for each document of a table, of the generation that readers see; or for each element
// of an array in the documents, where columns lie in one.
type ReportView struct {
	Name       string // as SQL has it: lower case, unique over all sets
	Meaning    string // for people
	Projection string
	Table      *Table
	// Where is the path of a member that must be true for a document to be seen. Defaults to seeing all.
	Where   string
	Columns []ReportColumn
}

// ReportColumn declares a column. Where the document lacks the member, or has null there, it is null.
type ReportColumn struct {
	Name string
	// Path leads from the document to the value, as a JSON pointer: /total/amount. In it, one * stands for all elements of an
	// array, the same one for all columns of a view: /lines/*/sku.
	Path string
	Type ReportType
	// Sum adds the column up, over all rows that agree in the columns without it: for documents of which each
	// partition has one. Defaults to a row for each.
	Sum     bool
	Meaning string // for people
}

// ReportType is the type of a column.
type ReportType int

// The types of columns. An amount is a ReportNumber, which is exact.
const (
	ReportText ReportType = iota
	ReportInteger
	ReportNumber
	ReportBool
	ReportTime // an instant
	ReportDay
)
