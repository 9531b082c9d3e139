package pgstore

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/millrace-io/millrace"
)

// reportFormat rises when the SQL changes that is made of a declaration.
const reportFormat = 1

// maxColumns bounds a view: PostgreSQL has room for 1,664.
const maxColumns = 500

var (
	// reportName needs no quotes, but for SQL's own words, which are quoted.
	reportName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}$`)
	// reportPath is a pointer of plain members, with one * at most, which is not the last.
	reportPath = regexp.MustCompile(`^(/[A-Za-z0-9_-]+)+(/\*(/[A-Za-z0-9_-]+)+)?$`)
)

// reportTypes are the types of columns as PostgreSQL has them.
var reportTypes = map[millrace.ReportType]string{
	millrace.ReportText: "text", millrace.ReportInteger: "bigint", millrace.ReportNumber: "numeric",
	millrace.ReportBool: "boolean", millrace.ReportTime: "timestamptz", millrace.ReportDay: "date",
}

// reportSet is a set of views, ready to be made.
type reportSet struct {
	name    string
	version reportVersion
	digest  string // of all texts
	views   []reportText
}

// reportText is a view: its query, and what is said of it and of its columns.
type reportText struct {
	name, query, comments string
}

// reportVersion orders what nodes know: the newest declaration, made by the newest program.
type reportVersion struct{ version, format int }

func (v reportVersion) less(o reportVersion) bool {
	return v.version < o.version || v.version == o.version && v.format < o.format
}

func (v reportVersion) String() string { return fmt.Sprintf("%d.%d", v.version, v.format) }

// reportSets makes the SQL of declarations, or says what is wrong with them.
func reportSets(o *Options) ([]reportSet, error) {
	views, names := map[string]bool{}, map[string]bool{}
	var out []reportSet
	for i := range o.Reports {
		r := &o.Reports[i]
		if !reportName.MatchString(r.Name) || names[r.Name] || r.Version < 1 {
			return nil, fmt.Errorf("pgstore: reports %q: a set needs a name of its own, in lower case, and a version from 1", r.Name)
		}
		names[r.Name] = true
		set := reportSet{name: r.Name, version: reportVersion{r.Version, reportFormat}}
		hash := sha256.New()
		for n := range r.Views {
			v := &r.Views[n]
			if views[v.Name] {
				return nil, fmt.Errorf("pgstore: the view %s is declared twice", v.Name)
			}
			views[v.Name] = true
			text, err := newReportText(o, v)
			if err != nil {
				return nil, fmt.Errorf("pgstore: the view %q: %w", v.Name, err)
			}
			set.views = append(set.views, text)
			_, _ = fmt.Fprintf(hash, "%q %q %q %q\n", v.Name, v.Meaning, text.query, text.comments)
		}
		set.digest = hex.EncodeToString(hash.Sum(nil)[:8])
		for n := range set.views {
			// What is said of the view itself ends with the stamp, by which every node knows whose it is.
			set.views[n].comments += fmt.Sprintf("comment on view %s is %s;\n",
				o.reportView(set.views[n].name), literal(r.Views[n].Meaning+" "+set.stamp()))
		}
		out = append(out, set)
	}
	return out, nil
}

// reportView is a view's full name.
func (o *Options) reportView(name string) string {
	return quoted(o.ReportSchema) + "." + quoted(name)
}

// literal is a text as SQL writes it.
func literal(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// newReportText makes the SQL of a view.
//
// The live generation is looked up by the statement that reads the view: by its snapshot it sees all of one generation,
// and the statement after a switch sees the next. Partitions are named so that a small table is found by its index among
// many documents. The pattern, which every generation fits, adds nothing but this: by it the planner knows before it has
// the generation whether the table is a small one or one to be scanned.
//
// The barrier keeps a reader's own functions from being asked about rows that the view leaves out: all documents lie in one
// table.
func newReportText(o *Options, v *millrace.ReportView) (reportText, error) {
	array, err := checkReport(v)
	if err != nil {
		return reportText{}, err
	}
	var columns, comments, groups []string
	sums := slices.ContainsFunc(v.Columns, func(c millrace.ReportColumn) bool { return c.Sum })
	for i, c := range v.Columns {
		value := "(" + member(array, c.Path, "->>") + ")::" + reportTypes[c.Type]
		switch {
		case c.Sum:
			value = "sum(" + value + ")::" + reportTypes[c.Type]
		case sums:
			groups = append(groups, strconv.Itoa(i+1))
		}
		columns = append(columns, "\n\t"+value+" as "+quoted(c.Name))
		comments = append(comments, fmt.Sprintf("comment on column %s.%s is %s;\n", o.reportView(v.Name), quoted(c.Name), literal(c.Meaning)))
	}
	schema := quoted(o.Schema)
	var b strings.Builder
	fmt.Fprintf(&b, "select%s\nfrom %s.partitions p\njoin %s.documents d on d.partition = p.partition", strings.Join(columns, ","), schema, schema)
	// The pointer's id is bytea, as all ids are.
	fmt.Fprintf(&b, "\n\tand d.collection = %s || coalesce((select l.doc ->> 'generation' from %s.documents l"+
		" where l.partition = 0 and l.collection = %s and l.id = '\\x%x'), '1') || %s",
		literal(v.Projection+millrace.GenerationMark), schema, literal(millrace.LiveCollection), v.Projection, literal("."+v.Table.Name))
	fmt.Fprintf(&b, "\n\tand d.collection like %s", literal(pattern(v.Projection+millrace.GenerationMark)+"%"+pattern("."+v.Table.Name)))
	if array != "" {
		list := member("", array, "->")
		fmt.Fprintf(&b, "\ncross join lateral jsonb_array_elements(case jsonb_typeof(%s) when 'array' then %s end) e (item)", list, list)
	}
	if v.Where != "" {
		fmt.Fprintf(&b, "\nwhere %s = 'true'", member("", v.Where, "->"))
	}
	if len(groups) > 0 {
		b.WriteString("\ngroup by " + strings.Join(groups, ", "))
	}
	query := b.String()
	if o.edit != nil {
		query = o.edit(query)
	}
	return reportText{name: v.Name, query: query, comments: strings.Join(comments, "")}, nil
}

// pattern is a text as LIKE finds it.
func pattern(s string) string { return strings.NewReplacer(`\`, `\\`, "%", `\%`, "_", `\_`).Replace(s) }

// member is the value at a path; the last operator says whether it is to be text.
func member(array, path, last string) string {
	out, rest := "d.doc", strings.TrimPrefix(path, "/")
	if array != "" {
		if inner, ok := strings.CutPrefix(path, array+"/*/"); ok {
			out, rest = "e.item", inner
		}
	}
	parts := strings.Split(rest, "/")
	for i, p := range parts {
		op := "->"
		if i == len(parts)-1 {
			op = last
		}
		out += " " + op + " " + literal(p)
	}
	return out
}

// checkReport says what is wrong with a view, and which array its rows come from.
func checkReport(v *millrace.ReportView) (array string, err error) {
	switch {
	case !reportName.MatchString(v.Name):
		return "", errors.New("a name is lower-case letters, digits and underscores, and starts with a letter")
	case v.Projection == "" || v.Table == nil || len(v.Columns) == 0 || len(v.Columns) > maxColumns:
		return "", fmt.Errorf("needs a projection, a table and 1 to %d columns", maxColumns)
	case v.Where != "" && (!reportPath.MatchString(v.Where) || strings.Contains(v.Where, "*")):
		return "", fmt.Errorf("%q is no path to a member", v.Where)
	}
	seen := map[string]bool{}
	for i := range v.Columns {
		c := &v.Columns[i]
		of, _, inArray := strings.Cut(c.Path, "/*/")
		switch {
		case !reportName.MatchString(c.Name) || seen[c.Name]:
			return "", fmt.Errorf("the column %q is declared twice, or its name is not lower-case letters, digits and underscores", c.Name)
		case !reportPath.MatchString(c.Path):
			return "", fmt.Errorf("the column %s: %q is no path", c.Name, c.Path)
		case inArray && array != "" && of != array:
			return "", fmt.Errorf("the column %s: rows come from the elements of one array, and %s is another than %s", c.Name, of, array)
		case reportTypes[c.Type] == "":
			return "", fmt.Errorf("the column %s has no type", c.Name)
		case c.Sum && c.Type != millrace.ReportInteger && c.Type != millrace.ReportNumber:
			return "", fmt.Errorf("the column %s cannot be added up", c.Name)
		}
		if seen[c.Name] = true; inArray {
			array = of
		}
	}
	if !slices.ContainsFunc(v.Columns, func(c millrace.ReportColumn) bool { return !c.Sum }) {
		return "", errors.New("needs a column that is not added up")
	}
	return array, nil
}
