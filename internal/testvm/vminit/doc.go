// Package vminit has what the test machines' PID 1s share: the file systems
// that the kernel shows, and the drivers that it does not have built in.
package vminit
