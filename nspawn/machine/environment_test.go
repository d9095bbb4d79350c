package machine

import (
	"testing"

	"github.com/shoenig/test/must"
)

func TestEnvironmentNames(t *testing.T) {
	for name, valid := range map[string]bool{"PATH": true, "_a1": true, "1a": false, "a-b": false, "a.b": false, "zwölf": false} {
		must.Eq(t, valid, ValidEnvironmentName(name), must.Sprint(name))
		must.True(t, PossibleEnvironmentName(name))
	}
	for _, name := range []string{"", "a=b", "a\x00"} {
		must.False(t, PossibleEnvironmentName(name))
	}
}
