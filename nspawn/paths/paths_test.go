package paths

import (
	"testing"

	"github.com/shoenig/test/must"
)

func TestWithin(t *testing.T) {
	for path, want := range map[string]bool{"/srv": true, "/srv/a": true, "/srvs": false, "/": false} {
		must.Eq(t, want, Within("/srv", path), must.Sprint(path))
		must.True(t, Within("/", path))
	}
}

func TestOverlap(t *testing.T) {
	must.True(t, Overlap("/a", "/a"))
	must.True(t, Overlap("/a", "/a/b"))
	must.True(t, Overlap("/a/b", "/a"))
	must.True(t, Overlap("/a", "/"))
	must.False(t, Overlap("/a", "/ab"))
}
