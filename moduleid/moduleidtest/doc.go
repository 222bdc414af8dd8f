// Package moduleidtest brings modules for tests that have none: ATECC608
// secure elements emulated at the wire, behind an emulated I2C bus or a TCP
// socket, SPDM responders in the same process or behind one, and a test CA that
// certifies them. Faults are injected on request: on a [Bus] by OnTransfer, on
// an [SPDMPort] by name ([SPDMFaults]) or by OnExchange.
//
// Nothing here protects anything: keys are made in memory, and anybody may
// read them. It is for tests and demonstrations.
package moduleidtest
