package programs

import (
	"testing"

	"github.com/shoenig/test/must"
)

func TestMajor(t *testing.T) {
	for release, want := range map[string]int{"252.39-1~deb12u1": 252, "257.13-1~deb13u1": 257, "262~rc1": 262, "v255": 255} {
		got, err := Major(release)
		must.NoError(t, err)
		must.Eq(t, want, got)
	}
	_, err := Major("none")
	must.Error(t, err)
}
