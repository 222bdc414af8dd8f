// Package e2e tests the reference apps as a city runs them: several instances
// of the cloud on one PostgreSQL and nodes with distinct TPMs, each in a network
// namespace of its own; what a thief gets; the operator page in a browser.
package e2e
