package reason_test

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/attest/reason"
)

func ExampleOf() {
	err := quote.CheckSelection([]quote.Selection{{Bank: 3, PCRs: []int{0}}}) // SHA-1
	fmt.Println(errors.Is(err, quote.ErrSelection), errors.Is(err, reason.SHA1Bank), reason.Of(err))
	// Output: true true sha1-bank
}

func TestClassAndTextStay(t *testing.T) {
	class := errors.New("class")
	inner := fmt.Errorf("%w: fact", class)
	err := fmt.Errorf("outer: %w", reason.Because(reason.Chain, inner))
	require.ErrorIs(t, err, class)
	require.ErrorIs(t, err, reason.Chain)
	require.NotErrorIs(t, err, reason.IsCA)
	assert.Equal(t, "outer: class: fact", err.Error())
	assert.Equal(t, reason.Chain, reason.Of(err))
	assert.Empty(t, reason.Of(class))
	assert.Empty(t, reason.Of(nil))
}

// No two codes are the same, and each can be a label or a field's value.
func TestCodesAreDistinct(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "code.go", nil, 0)
	require.NoError(t, err)
	seen := map[string]string{}
	ast.Inspect(f, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok {
			text, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			require.NoError(t, err)
			assert.Empty(t, seen[text], "%s and %s are %q", seen[text], v.Names[0].Name, text)
			assert.Regexp(t, regexp.MustCompile(`^[a-z][a-z0-9-]*[a-z0-9]$`), text)
			seen[text] = v.Names[0].Name
		}
		return true
	})
	assert.Greater(t, len(seen), 80)
}
