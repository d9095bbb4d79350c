package driver

import (
	"errors"
	"strconv"
	"strings"

	"github.com/hashicorp/nomad/nomad/structs"
)

// printable returns a text that terminals show as it is and that Nomad can carry, which
// takes only UTF-8. Images and containers decide parts of many messages, as the name of a
// file or the interpreter of a program.
func printable(text string) string {
	var b strings.Builder
	for _, r := range text { // a byte that is not UTF-8 becomes U+FFFD
		if r == '\n' || r == '\t' || strconv.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		quoted := strconv.QuoteRune(r)
		b.WriteString(quoted[1 : len(quoted)-1])
	}
	return b.String()
}

// printableError returns the error with a printable text. Only what Nomad knows of an
// error, whether it may try again, outlives a text that is changed.
func printableError(err error) error {
	if err == nil {
		return nil
	}
	text := printable(err.Error())
	switch {
	case text == err.Error():
		return err
	case structs.IsRecoverable(err):
		return recoverable(errors.New(text))
	}
	return errors.New(text)
}
