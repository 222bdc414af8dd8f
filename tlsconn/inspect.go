package tlsconn

// Inspector looks at the first bytes that a flow's opener sends. It must not
// keep head. ok says that it knows the protocol; an error refuses the flow.
type Inspector interface {
	Inspect(f *Flow, head []byte) (ok bool, err error)
}
