package deadletter

// Disorderly has jobs send the dead letters of a stream without waiting for what becomes of those before.
func Disorderly(s *Service) { s.orderly = false }
