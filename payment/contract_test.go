package payment_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"

	"github.com/millrace-io/millrace/api"
)

// theDocument is the OpenAPI document of gateways, as what finds the operation of a request.
func theDocument(t *testing.T) routers.Router {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(api.PaymentGateway)
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	router, err := legacy.NewRouter(doc)
	if err != nil {
		t.Fatal(err)
	}
	return router
}

// judge hands requests to a gateway, and tells of every request and every answer that is not as the document says.
func judge(router routers.Router, gateway http.Handler, tell func(r *http.Request, status int, answer []byte, err error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		again := func() io.ReadCloser { return io.NopCloser(bytes.NewReader(body)) }
		r.Body = again()
		rec := httptest.NewRecorder()
		gateway.ServeHTTP(rec, r)
		r.Body = again()
		tell(r, rec.Code, rec.Body.Bytes(), fits(router, r, rec))
		for name, values := range rec.Header() {
			w.Header()[name] = values
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes())
	})
}

// fits says what of a request and its answer is not as the document says.
func fits(router routers.Router, r *http.Request, rec *httptest.ResponseRecorder) error {
	asked := r.Clone(context.Background())
	asked.URL.Scheme, asked.URL.Host = "", ""
	route, params, err := router.FindRoute(asked)
	if err != nil {
		return err
	}
	in := &openapi3filter.RequestValidationInput{Request: asked, PathParams: params, Route: route, Options: &openapi3filter.Options{
		IncludeResponseStatus: true,
		AuthenticationFunc:    openapi3filter.NoopAuthenticationFunc,
	}}
	if err := openapi3filter.ValidateRequest(asked.Context(), in); err != nil {
		return err
	}
	return openapi3filter.ValidateResponse(asked.Context(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: in, Status: rec.Code, Header: rec.Header(), Body: io.NopCloser(bytes.NewReader(rec.Body.Bytes())), Options: in.Options,
	})
}

// TestDocumentControl: answers that the adapter does not take do not fit the document either.
func TestDocumentControl(t *testing.T) {
	router := theDocument(t)
	ok := yes("k", "capture")
	for body, want := range map[string]bool{
		ok:                                       true,
		yes("k", "capture", `,"fee":1`):          true,
		strings.Replace(ok, `"key":"k",`, "", 1): false,
		strings.Replace(ok, "approved", "pending", 1):       false,
		strings.Replace(ok, `"15.30"`, "15.30", 1):          false,
		strings.Replace(ok, `"p-1"`, `".."`, 1):             false,
		strings.Replace(ok, `"p-1"`, `"p/1"`, 1):            false,
		strings.Replace(ok, `"capture"`, `"authorised"`, 1): false,
	} {
		var told error
		s := serve(t, judge(router, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, body)
		}), func(_ *http.Request, _ int, _ []byte, err error) { told = err }))
		_, err := dial(t, s.URL, nil).Do(t.Context(), "k", capture())
		if (told == nil) != want || (err == nil) != want {
			t.Errorf("%s: the document says %v, the adapter %v", body, told, err)
		}
	}
}
