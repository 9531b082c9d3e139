package httpapi

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"net/http"

	"go.yaml.in/yaml/v3"

	"github.com/millrace-io/millrace/internal/jsonx"
)

//go:embed static/docs.html
var docsTemplate string

//go:embed static/style.css
var docsStyle []byte

// docsCSP lets the page load its one style sheet, and nothing else from anywhere.
const docsCSP = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// docs serves the OpenAPI document and the page that is made from it, both made once, at start.
type docs struct {
	yaml, json, html []byte
}

func newDocs(document []byte) (*docs, error) {
	var root yaml.Node
	if err := yaml.Unmarshal(document, &root); err != nil {
		return nil, fmt.Errorf("httpapi: the OpenAPI document: %w", err)
	}
	if len(root.Content) != 1 {
		return nil, fmt.Errorf("httpapi: the OpenAPI document is empty")
	}
	var value any
	if err := root.Decode(&value); err != nil {
		return nil, fmt.Errorf("httpapi: the OpenAPI document: %w", err)
	}
	asJSON, err := jsonx.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("httpapi: the OpenAPI document: %w", err)
	}
	t, err := template.New("docs").Parse(docsTemplate)
	if err != nil {
		return nil, fmt.Errorf("httpapi: the template of the documentation: %w", err)
	}
	var page bytes.Buffer
	if err := t.Execute(&page, newDocsView(root.Content[0])); err != nil {
		return nil, fmt.Errorf("httpapi: the page of the documentation: %w", err)
	}
	return &docs{yaml: document, json: asJSON, html: page.Bytes()}, nil
}

// static answers with what never changes while the server runs.
func (x *exchange) static(contentType string, payload []byte) {
	h := x.w.Header()
	h["Cache-Control"] = []string{"no-cache"} // may be kept, if it is asked for again: the next version has another page
	x.send(http.StatusOK, []string{contentType}, payload)
}

func (d *docs) yamlDocument(x *exchange) { x.static("application/yaml", d.yaml) }
func (d *docs) jsonDocument(x *exchange) { x.static("application/json", d.json) }
func (d *docs) style(x *exchange)        { x.static("text/css; charset=utf-8", docsStyle) }

func (d *docs) page(x *exchange) {
	x.w.Header()["Content-Security-Policy"] = []string{docsCSP}
	x.static("text/html; charset=utf-8", d.html)
}

// index sends whoever opens the server in a browser to the documentation.
func (x *exchange) index() { x.redirect("/docs") }

// problemPage resolves the type of a problem to where the documentation tells about it.
func (x *exchange) problemPage() {
	code := x.r.PathValue("code")
	for _, k := range kinds() {
		if k.code == code {
			x.redirect("/docs#problem-" + k.code)
			return
		}
	}
	x.fail(kindNotFound.with("there is no problem of this code"))
}

func (x *exchange) redirect(to string) {
	x.w.Header()["Location"] = []string{to}
	x.send(http.StatusFound, nil, nil)
}
