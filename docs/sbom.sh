#!/bin/sh
# Writes a software bill of materials of a Go binary, from what the linker
# recorded in it, as CycloneDX 1.5 in JSON.
#
#	sh docs/sbom.sh BINARY >BINARY.cdx.json
#
# Needs Go and awk. The same binary gives the same bytes. Each component has the
# module's hash of go.sum (h1) as the property go:h1.
set -eu
[ $# = 1 ] || { echo "usage: sh docs/sbom.sh BINARY" >&2; exit 2; }
text=$(go version -m "$1")
printf '%s\n' "$text" | awk -F '\t' '
function component(type, name, version, h1,    s) {
	s = sprintf("{\"type\":\"%s\",\"bom-ref\":\"pkg:golang/%s@%s\",\"name\":\"%s\",\"version\":\"%s\",\"purl\":\"pkg:golang/%s@%s\"",
		type, name, version, name, version, name, version)
	if (h1 != "") s = s sprintf(",\"properties\":[{\"name\":\"go:h1\",\"value\":\"%s\"}]", h1)
	return s "}"
}
NR == 1 { n = split($0, head, ": go"); go = head[n]; sub(/ .*/, "", go); list = component("library", "stdlib", go, "") }
$2 == "path" { path = $3 }
$2 == "mod" { mod = $4 }
$2 == "dep" { last = component("library", $3, $4, $5); order[++deps] = last }
$2 == "=>" { order[deps] = component("library", $3, $4, $5) } # what replaces the line above
$2 == "build" { build = build sprintf("%s{\"name\":\"go:build\",\"value\":\"%s\"}", build == "" ? "" : ",", escape($3)) }
function escape(s) { gsub(/\\/, "\\\\", s); gsub(/"/, "\\\"", s); return s }
END {
	if (path == "") { print "sbom: no Go binary with module information" >"/dev/stderr"; exit 1 }
	for (i = 1; i <= deps; i++) list = list ",\n" order[i]
	printf "{\"bomFormat\":\"CycloneDX\",\"specVersion\":\"1.5\",\"version\":1,\n"
	printf "\"metadata\":{\"component\":%s,\"properties\":[%s]},\n", component("application", path, mod, ""), build
	printf "\"components\":[\n%s\n]}\n", list
}'
