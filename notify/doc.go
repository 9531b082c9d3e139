// Package notify tells customers what happened to their orders. It is what makes the calls of the process of notifications:
// it writes mails in the customer's language, posts notices to a webhook, and logs them. How a mail is sent is another
// package's, which the wiring hands in.
//
// Each channel has a lane of its own: so many notices at a time, and none for a while where the other end is away. A mail
// server that hangs delays mail, and nothing else.
package notify
