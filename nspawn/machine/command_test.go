package machine

import (
	"testing"

	"github.com/shoenig/test/must"
)

func TestCommandIsPlainUnlessItMustNotBeExpanded(t *testing.T) {
	must.Eq(t, "ExecStart", execProperties([]string{"/usr/bin/systemd-nspawn", "a b", "%n"})[0].Name)
	must.Eq(t, "ExecStartEx", execProperties([]string{"/usr/bin/systemd-nspawn", "$HOME"})[0].Name)
	must.Eq(t, "ExecStartEx", execProperties([]string{"/usr/bin/systemd-nspawn", "a ; b"})[0].Name)
}
