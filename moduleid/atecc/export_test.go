package atecc

// Compress is the reverse of what Compressed does, for the tests.
var Compress = compress
