module github.com/trusttree/trusttree/examples/signers

go 1.26.0

require (
	github.com/ThalesGroup/crypto11 v1.5.0
	github.com/go-piv/piv-go/v2 v2.6.0
	github.com/stretchr/testify v1.12.1
	github.com/trusttree/trusttree v0.0.0
)

require (
	github.com/miekg/pkcs11 v1.1.1 // indirect
	github.com/pkg/errors v0.9.1 // indirect
	github.com/thales-e-security/pool v0.0.2 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/crypto v0.58.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
)

replace github.com/trusttree/trusttree => ../..
