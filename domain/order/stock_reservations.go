package order

import (
	"strconv"
	"strings"
)

// Reservations maps the ids of open reservations to their quantities. It is persistent: With and Without return another
// map and leave the old one as it was, because old states stay in use, and they copy no more than one path of a balanced tree
// (AVL), because an SKU that sells well has a hundred thousand of them. It is ordered, so that its text is always
// the same, and it compares ids instead of hashing them, so that no choice of ids makes it slow.
type Reservations struct{ root *reservation }

type reservation struct {
	id          string
	quantity    int64
	left, right *reservation
	size        int32 // of the whole subtree
	height      int8
}

// Len is how many there are.
func (r Reservations) Len() int { return r.root.len() }

func (n *reservation) len() int {
	if n == nil {
		return 0
	}
	return int(n.size)
}

func (n *reservation) depth() int8 {
	if n == nil {
		return 0
	}
	return n.height
}

// Get is the quantity of a reservation.
func (r Reservations) Get(id string) (quantity int64, ok bool) {
	for n := r.root; n != nil; {
		switch c := strings.Compare(id, n.id); {
		case c < 0:
			n = n.left
		case c > 0:
			n = n.right
		default:
			return n.quantity, true
		}
	}
	return 0, false
}

// With is the map with one reservation more, or with another quantity for it.
func (r Reservations) With(id string, quantity int64) Reservations {
	return Reservations{r.root.with(id, quantity)}
}

// Without is the map without a reservation.
func (r Reservations) Without(id string) Reservations { return Reservations{r.root.without(id)} }

// All yields the reservations in the order of their ids.
func (r Reservations) All(yield func(id string, quantity int64) bool) { r.root.all(yield) }

func (n *reservation) all(yield func(string, int64) bool) bool {
	return n == nil || (n.left.all(yield) && yield(n.id, n.quantity) && n.right.all(yield))
}

func (n *reservation) with(id string, quantity int64) *reservation {
	if n == nil {
		return &reservation{id: id, quantity: quantity, size: 1, height: 1}
	}
	switch c := strings.Compare(id, n.id); {
	case c < 0:
		return join(n, n.left.with(id, quantity), n.right)
	case c > 0:
		return join(n, n.left, n.right.with(id, quantity))
	}
	same := *n
	same.quantity = quantity
	return &same
}

func (n *reservation) without(id string) *reservation {
	if n == nil {
		return nil
	}
	switch c := strings.Compare(id, n.id); {
	case c < 0:
		return join(n, n.left.without(id), n.right)
	case c > 0:
		return join(n, n.left, n.right.without(id))
	case n.left == nil:
		return n.right
	case n.right == nil:
		return n.left
	}
	next := n.right
	for next.left != nil {
		next = next.left
	}
	return join(next, n.left, n.right.without(next.id))
}

// node is a new node with the entry of n above two subtrees.
func node(n, left, right *reservation) *reservation {
	return &reservation{
		id: n.id, quantity: n.quantity, left: left, right: right,
		size: int32(left.len() + right.len() + 1), height: max(left.depth(), right.depth()) + 1, //nolint:gosec // at most MaxReservations
	}
}

// join is node with the AVL rotations: the subtrees differ in depth by two at most, and are balanced themselves.
func join(n, left, right *reservation) *reservation {
	switch d := left.depth() - right.depth(); {
	case d > 1 && left.left.depth() >= left.right.depth():
		return node(left, left.left, node(n, left.right, right))
	case d > 1:
		return node(left.right, node(left, left.left, left.right.left), node(n, left.right.right, right))
	case d < -1 && right.right.depth() >= right.left.depth():
		return node(right, node(n, left, right.left), right.right)
	case d < -1:
		return node(right.left, node(n, left, right.left.left), node(right, right.left.right, right.right))
	}
	return node(n, left, right)
}

// The text of reservations is one line for each: quantity, space, id. An id holds no line break, and one string is a single
// value for the JSON decoder, which bounds how many a document may hold.

// MarshalText gives the text.
func (r Reservations) MarshalText() ([]byte, error) {
	dst := make([]byte, 0, 32*r.Len())
	for id, quantity := range r.All {
		dst = strconv.AppendInt(dst, quantity, 10)
		dst = append(dst, ' ')
		dst = append(append(dst, id...), '\n')
	}
	return dst, nil
}

// UnmarshalText reads what MarshalText wrote.
func (r *Reservations) UnmarshalText(text []byte) error {
	var entries []reservation
	for line := range strings.Lines(string(text)) {
		line, ended := strings.CutSuffix(line, "\n")
		number, id, ok := strings.Cut(line, " ")
		quantity, err := strconv.ParseInt(number, 10, 64)
		if !ended || !ok || err != nil || quantity < 1 || idFault(id, MaxReservationID, true) != "" ||
			(len(entries) > 0 && entries[len(entries)-1].id >= id) || len(entries) == MaxReservations {
			return errReservations
		}
		entries = append(entries, reservation{id: strings.Clone(id), quantity: quantity}) // not to keep the whole text alive
	}
	r.root = build(entries)
	return nil
}

var errReservations = &reservationsError{}

type reservationsError struct{}

func (*reservationsError) Error() string {
	return "must be lines of quantity and id, in the order of the ids"
}
func (*reservationsError) Public() string { return errReservations.Error() }

// build makes a balanced tree of sorted entries.
func build(entries []reservation) *reservation {
	if len(entries) == 0 {
		return nil
	}
	mid := len(entries) / 2
	return node(&entries[mid], build(entries[:mid]), build(entries[mid+1:]))
}
