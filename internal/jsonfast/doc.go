// Package jsonfast helps types to read their own JSON without reflection, for the few bodies that are read for every
// order. It is a cursor over the bytes of one document, and the type says in a switch what each member is.
//
// It knows the common forms only and gives up on every other one, valid or not: null, escapes of the form \u0000, -0,
// times that are not in UTC, a document of more values than internal/jsonx takes. The caller then reads the document
// again by internal/jsonx, which is what judges it. So nothing here has an error to tell, and giving up is always safe.
// What must never happen is the other thing: to accept what jsonx refuses, or to read it as another value.
package jsonfast
