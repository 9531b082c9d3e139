package httpapi

import (
	"strings"

	"go.yaml.in/yaml/v3"
)

// docsView is the OpenAPI document as the page shows it.
type docsView struct {
	Title, Version string
	Text           []paragraph
	Groups         []docsGroup
	Schemas        []docsSchema
	Problems       []docsProblem
}

type docsProblem struct {
	Code, Title, Help string
	Status            int
}

type docsGroup struct {
	Name       string
	Text       []paragraph
	Operations []docsOperation
}

type docsOperation struct {
	ID, Method, Path, Summary string
	Text                      []paragraph
	Parameters                []docsField
	Bodies                    []docsField
	Responses                 []docsResponse
}

type docsResponse struct {
	Status  string
	Text    []paragraph
	Bodies  []docsField
	Headers []docsField
}

type docsSchema struct {
	Name   string
	Text   []paragraph
	Type   docsType
	Fields []docsField
}

// docsField is a named thing with a type: a parameter, a header, a body of a media type, a member of an object.
type docsField struct {
	Name, Where string
	Required    bool
	Type        docsType
	Text        []paragraph
}

// docsType is a type in words, and the schema that tells more, if there is one.
type docsType struct{ Words, Schema string }

// paragraph is text with code in it.
type paragraph []span

type span struct {
	Code bool
	Text string
}

// paragraphs splits a description: a blank line ends a paragraph, backquotes lead code.
func paragraphs(s string) []paragraph {
	var out []paragraph
	for _, block := range strings.Split(strings.TrimSpace(s), "\n\n") {
		var p paragraph
		for i, part := range strings.Split(block, "`") {
			if part != "" {
				p = append(p, span{Code: i%2 == 1, Text: part})
			}
		}
		if p != nil {
			out = append(out, p)
		}
	}
	return out
}

// docNode is a place in the document. Everything that is not there is the empty node, so that the view is built
// without asking at each step.
type docNode struct{ root, at *yaml.Node }

// node is a place, or what its alias stands for.
func node(root, at *yaml.Node) docNode {
	if at != nil && at.Kind == yaml.AliasNode {
		at = at.Alias
	}
	return docNode{root, at}
}

// get goes to a member, through a reference where there is one.
func (n docNode) get(names ...string) docNode {
	for _, name := range names {
		n = n.resolve()
		next := docNode{root: n.root}
		if n.at != nil && n.at.Kind == yaml.MappingNode {
			for i := 0; i+1 < len(n.at.Content); i += 2 {
				if n.at.Content[i].Value == name {
					next = node(n.root, n.at.Content[i+1])
				}
			}
		}
		n = next
	}
	return n
}

// ref is the reference that the node is, or "".
func (n docNode) ref() string {
	if n.at == nil || n.at.Kind != yaml.MappingNode {
		return ""
	}
	for i := 0; i+1 < len(n.at.Content); i += 2 {
		if n.at.Content[i].Value == "$ref" {
			return n.at.Content[i+1].Value
		}
	}
	return ""
}

func (n docNode) resolve() docNode {
	path, ok := strings.CutPrefix(n.ref(), "#/")
	if !ok {
		return n
	}
	return docNode{n.root, n.root}.get(strings.Split(path, "/")...)
}

func (n docNode) text() string {
	if n.at == nil {
		return ""
	}
	return n.at.Value
}

// each visits the members of an object in the order of the document.
func (n docNode) each(visit func(name string, value docNode)) {
	n = n.resolve()
	if n.at == nil || n.at.Kind != yaml.MappingNode {
		return
	}
	for i := 0; i+1 < len(n.at.Content); i += 2 {
		visit(n.at.Content[i].Value, node(n.root, n.at.Content[i+1]))
	}
}

// items are the elements of an array.
func (n docNode) items() []docNode {
	n = n.resolve()
	if n.at == nil || n.at.Kind != yaml.SequenceNode {
		return nil
	}
	var out []docNode
	for _, c := range n.at.Content {
		out = append(out, node(n.root, c))
	}
	return out
}

// words says what a schema is, in a few words.
func (n docNode) words() docsType {
	if name, ok := strings.CutPrefix(n.ref(), "#/components/schemas/"); ok {
		return docsType{Words: name, Schema: name}
	}
	switch t := n.get("type").text(); {
	case t == "array":
		of := n.get("items").words()
		return docsType{Words: "array of " + of.Words, Schema: of.Schema}
	case len(n.get("enum").items()) > 0:
		var values []string
		for _, v := range n.get("enum").items() {
			values = append(values, v.text())
		}
		return docsType{Words: strings.Join(values, " | ")}
	case n.get("const").text() != "":
		return docsType{Words: n.get("const").text()}
	case t != "" && n.get("format").text() != "":
		return docsType{Words: t + " (" + n.get("format").text() + ")"}
	case t != "":
		return docsType{Words: t}
	}
	return docsType{Words: "any"}
}

func newDocsView(root *yaml.Node) *docsView {
	n := docNode{root, root}
	v := &docsView{
		Title: n.get("info", "title").text(), Version: n.get("info", "version").text(),
		Text: paragraphs(n.get("info", "description").text()),
	}
	for _, tag := range n.get("tags").items() {
		v.Groups = append(v.Groups, docsGroup{Name: tag.get("name").text(), Text: paragraphs(tag.get("description").text())})
	}
	n.get("paths").each(func(path string, item docNode) {
		item.each(func(method string, o docNode) {
			if method == "parameters" {
				return
			}
			view := operationView(path, method, item, o)
			for _, tag := range o.get("tags").items() {
				for i := range v.Groups {
					if v.Groups[i].Name == tag.text() {
						v.Groups[i].Operations = append(v.Groups[i].Operations, view)
					}
				}
			}
		})
	})
	n.get("components", "schemas").each(func(name string, s docNode) {
		v.Schemas = append(v.Schemas, docsSchema{
			Name: name, Text: paragraphs(s.get("description").text()), Type: s.words(), Fields: membersView(s),
		})
	})
	for _, k := range kinds() {
		v.Problems = append(v.Problems, docsProblem{Code: k.code, Title: k.title, Help: k.help, Status: k.status})
	}
	return v
}

func operationView(path, method string, item, o docNode) docsOperation {
	view := docsOperation{
		ID: o.get("operationId").text(), Method: strings.ToUpper(method), Path: path, Summary: o.get("summary").text(),
		Text: paragraphs(o.get("description").text()), Bodies: bodiesView(o.get("requestBody", "content")),
	}
	for _, p := range append(item.get("parameters").items(), o.get("parameters").items()...) {
		view.Parameters = append(view.Parameters, docsField{
			Name: p.get("name").text(), Where: p.get("in").text(), Required: p.get("required").text() == "true",
			Type: p.get("schema").words(), Text: paragraphs(p.get("description").text()),
		})
	}
	o.get("responses").each(func(status string, r docNode) {
		response := docsResponse{Status: status, Text: paragraphs(r.get("description").text()), Bodies: bodiesView(r.get("content"))}
		r.get("headers").each(func(name string, h docNode) {
			response.Headers = append(response.Headers, docsField{
				Name: name, Type: h.get("schema").words(), Text: paragraphs(h.get("description").text()),
			})
		})
		view.Responses = append(view.Responses, response)
	})
	return view
}

func bodiesView(content docNode) []docsField {
	var out []docsField
	content.each(func(mediaType string, m docNode) {
		out = append(out, docsField{Name: mediaType, Type: m.get("schema").words()})
	})
	return out
}

func membersView(s docNode) []docsField {
	required := map[string]bool{}
	for _, name := range s.get("required").items() {
		required[name.text()] = true
	}
	var out []docsField
	s.get("properties").each(func(name string, p docNode) {
		out = append(out, docsField{
			Name: name, Required: required[name], Type: p.words(), Text: paragraphs(p.get("description").text()),
		})
	})
	return out
}
