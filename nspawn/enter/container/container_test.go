package container

import (
	"os"
	"os/exec"
	"testing"

	"github.com/shoenig/test/must"
)

func TestMain(m *testing.M) {
	if Called(os.Args) {
		Main()
	}
	os.Exit(m.Run())
}

func TestCandidates(t *testing.T) {
	must.Eq(t, []string{"/a/sh", "b/sh"}, candidates("sh", []string{"PATH=/a::b:"}))
	must.Eq(t, []string{"./sh"}, candidates("./sh", []string{"PATH=/a"}))
	must.Eq(t, nil, candidates("sh", nil))
}

func TestStatic(t *testing.T) {
	static, err := Static()
	must.NoError(t, err)
	self, err := os.Executable()
	must.NoError(t, err)
	_, loader := exec.Command("ldd", self).Output() // this fails for a program that is not dynamic
	must.EqOp(t, loader != nil, static)
}
