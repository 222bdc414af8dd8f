// Package ima reads and verifies the binary runtime measurement log of Linux
// IMA (securityfs ima/binary_runtime_measurements) against PCR 10: the
// templates ima, ima-ng, ima-sig, ima-ngv2, ima-sigv2, ima-buf, ima-modsig and
// evm-sig, and formats spelled out in fields ("d-ng|n-ng|sig").
//
// Start with Parse and Log.Verify; Resume continues where an earlier
// verification of the same boot ended.
//
// Every template digest is computed again from the template data. The log may
// be ahead of the quote: entries after the prefix that gives the quoted PCR 10
// are not verified and not handed out. A bank whose hash the kernel lacked when
// IMA started holds SHA-1 digests padded with zeros; such a bank has the
// strength of SHA-1, and Verified.Padded says so.
//
// File names are bytes that the measured machine's users choose: they are kept
// raw, and Entry.String escapes them. The ASCII log is not supported: a name
// with a newline forges lines in it.
package ima
