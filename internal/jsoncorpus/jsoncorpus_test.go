package jsoncorpus

import "testing"

func TestCases(t *testing.T) {
	count := map[byte]int{}
	names := map[string]bool{}
	for _, c := range Cases() {
		if c.Name[0] != c.Want || c.Name[1] != '_' {
			t.Errorf("%s: is wanted as %q", c.Name, c.Want)
		}
		if names[c.Name] {
			t.Errorf("%s is there twice", c.Name)
		}
		names[c.Name] = true
		count[c.Want]++
	}
	if count['y'] != 95 || count['n'] != 188 || count['i'] != 35 {
		t.Errorf("y: %d, n: %d, i: %d; want 95, 188, 35", count['y'], count['n'], count['i'])
	}
}
