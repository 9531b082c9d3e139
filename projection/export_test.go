package projection

import "time"

// Without takes a protection away, by its name.
func (o *Options) Without(name string) {
	switch name {
	case "aim":
		o.without.aim = true
	case "halt":
		o.without.halt = true
	case "fresh":
		o.without.fresh = true
	case "begin":
		o.without.begin = true
	}
}

// Fresh makes the time shorter for which a node goes by what it knows.
func (o *Options) Fresh(d time.Duration) { o.fresh = d }
