package process

import "crypto/rand"

// FreshIDs has the commands of steps have another id each time, for the test that shows what comes of it.
func FreshIDs(m *Manager) {
	m.freshID = rand.Text
}

const LookEvery = lookEvery
