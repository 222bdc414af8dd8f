// Package moduleidtest brings modules for tests that have none: ATECC608
// secure elements emulated at the wire, behind an emulated I2C bus or a TCP
// socket, SPDM responders, and a test CA that certifies them. Faults are
// injected on request.
//
// Nothing here protects anything: keys are made in memory, and anybody may
// read them. It is for tests and demonstrations.
package moduleidtest
