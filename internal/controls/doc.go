// Package controls maps what this module does onto the controls of security
// frameworks, and a run of its tests onto findings about that mapping.
//
// Three tables hold it all. A [Capability] is something that one package does,
// with the symbols that do it and the tests that attack it. A [Control] is a
// requirement of a framework: which capabilities serve it, what they cover,
// what remains with the operator, and what is not covered. A [Framework] is a
// list of controls with its edition and source. [Check] holds the tables
// against a source tree: a symbol or test that is gone is an error.
//
// [ReadRun] reads what "go test -json" printed. A control is shown by a run
// only if every test of its capabilities passed in it; one that failed, was
// skipped, even in part, did not end or did not run speaks against it.
// [ComponentDefinition] and [AssessmentResults] say both in OSCAL 1.1.3, and
// [WriteMarkdown] writes docs/compliance.md.
//
// A mapping is not a certificate. It says what code exists and which tests ran;
// whether a product or an organisation meets a framework is judged by whoever
// assesses that product or organisation, against the framework's own text.
// Identifiers and short titles of controls are the frameworks'; descriptions
// are this project's words and replace no framework's text.
//
// Functions of this package are pure and safe for concurrent use. Errors carry
// the prefix "controls: ".
package controls
