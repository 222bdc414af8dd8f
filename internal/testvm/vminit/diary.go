package vminit

import "strings"

// Diary is what the node's PID 1 writes into an encrypted volume: it must never
// be seen on the disk.
var Diary = strings.Repeat("Dear diary, today a volume of mine was opened. ", 100)
