package driver

import (
	"errors"
	"testing"

	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/shoenig/test/must"
)

func TestPrintable(t *testing.T) {
	for text, want := range map[string]string{
		"two\nlines, Ärger 気": "two\nlines, Ärger 気",
		"\x1b[2J\a\r":         `\x1b[2J\a\r`,
		"a\xffb\x00":          "a\ufffdb\\x00",
		"\u202etxt.exe":       `\u202etxt.exe`,
		"\u009b31m":           `\u009b31m`,
	} {
		must.Eq(t, want, printable(text))
	}
}

func TestPrintableError(t *testing.T) {
	must.NoError(t, printableError(nil))
	plain := errors.New("plain")
	must.True(t, plain == printableError(plain))
	for _, again := range []bool{false, true} {
		err := printableError(structs.NewRecoverableError(errors.New("\x1b"), again))
		must.EqError(t, err, `\x1b`)
		must.Eq(t, again, structs.IsRecoverable(err))
	}
}
