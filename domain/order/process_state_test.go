package order

import "testing"

// TestTextsOfTheProcess: what is no list as the process writes it is not read as one.
func TestTextsOfTheProcess(t *testing.T) {
	for _, c := range []struct {
		into interface{ UnmarshalText(text []byte) error }
		good string
		bad  []string
	}{
		{new(openLines), "0 6,1 2", []string{"0", "0 6,", "0 6 1", "x 6", ","}},
		{new(restocks), "1 1 0 6", []string{"1 1 0", "1 1 0 6 2", "a b c d"}},
		{new(dues), "1 250 0,2 1 7", []string{"1 250", "1"}},
		{new(goods), "6   1h6 A b\n", []string{"6\n", "x   1h6 A\n", "6 1 1h6 A\n", "6   h6 A\n", "6   1z6 A\n", "6   1h A\n", "6   1h1.2.3.4.5 A\n", "6 1  1h1 A\n", "6  1.2 1h1 A\n"}},
		{new(goods), "6 1.2,2.3 7.1.4 1c4.2.1,2x0.3.7,3r5.0.0.2 A\n6    B\n", nil},
	} {
		if err := c.into.UnmarshalText([]byte(c.good)); err != nil {
			t.Errorf("%q: %v", c.good, err)
		}
		m, ok := map[bool]interface{ MarshalText() ([]byte, error) }{}, false
		switch v := c.into.(type) {
		case *openLines:
			m[true], ok = *v, true
		case *restocks:
			m[true], ok = *v, true
		case *dues:
			m[true], ok = *v, true
		case *goods:
			m[true], ok = *v, true
		}
		if text, err := m[ok].MarshalText(); err != nil || string(text) != c.good {
			t.Errorf("%q is written as %q (%v)", c.good, text, err)
		}
		for _, bad := range c.bad {
			if err := c.into.UnmarshalText([]byte(bad)); err == nil {
				t.Errorf("%T takes %q", c.into, bad)
			}
		}
	}
}
