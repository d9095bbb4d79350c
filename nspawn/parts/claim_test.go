package parts

import (
	"testing"

	"github.com/shoenig/test/must"
)

func TestOverlap(t *testing.T) {
	must.True(t, overlap("/a", "/a"))
	must.True(t, overlap("/a", "/a/b"))
	must.True(t, overlap("/a/b", "/a"))
	must.False(t, overlap("/a", "/ab"))
}
