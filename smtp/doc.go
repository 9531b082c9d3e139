// Package smtp sends mails through a mail server. It is the only package that knows the library that speaks SMTP.
//
// The server is one that takes mail from us to anybody, a submission server (RFC 6409); which server is the recipient's, is its
// business. Connections are encrypted, by STARTTLS or from the start. They are kept for a while, because a new one costs more
// than a mail.
package smtp
