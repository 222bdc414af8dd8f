// Package seams compiles the adapters by which the packages meet, each no
// longer than an application would write it, and its tests hold the rules of
// the house: who imports whom, and why not. Nothing imports it: an application
// copies the adapter that it needs.
package seams
