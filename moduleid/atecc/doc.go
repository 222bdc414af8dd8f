// Package atecc makes Microchip's ATECC508A, ATECC608A and ATECC608B secure
// elements prove themselves as moduleid chips, over a Linux I2C bus
// (/dev/i2c-N) or any other [Bus].
//
// Start with [OpenI2C] and [NewHost], then [Host.Chip] for every address on
// the bus, and list [Scheme] in the verifier. Addresses are 7-bit, as Linux
// and i2cdetect write them: Microchip's data sheets print them shifted left,
// so that their 0xC0 is 0x60 here.
//
// The bus must run at 100 kHz or less, or else its [Bus] must wake the chips
// by other means: waking holds SDA low for 60 µs, which a faster clock does
// not reach.
//
// All verification is done by the host, from the certificate. What the chip
// says about itself (its configuration, its serial number, the outcome of its
// own Verify command) is unauthenticated: it serves diagnosis and the check
// that refuses chips that were never locked, and is no proof of anything.
//
// The protocol is that of the CryptoAuthentication data sheets as the vendor's
// host library speaks it: packets with CRC-16 (polynomial 0x8005), wake, idle
// and sleep, polling, the watchdog of about 1.3 s. One lock per bus, across
// processes, is held from wake to sleep; the chips of one bus compute at the
// same time.
package atecc
