package driver

import (
	"errors"
	"testing"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn"
)

func TestExitResult(t *testing.T) {
	lost := errors.New("unit is gone")
	for name, c := range map[string]struct {
		exit nspawn.Exit
		err  error
		want drivers.ExitResult
		text string // the error that Nomad shows
	}{
		"success":       {want: drivers.ExitResult{}},
		"code":          {exit: nspawn.Exit{Code: 7}, want: drivers.ExitResult{ExitCode: 7}},
		"signal":        {exit: nspawn.Exit{Code: 137, Signal: 9}, want: drivers.ExitResult{ExitCode: 137, Signal: 9}},
		"out of memory": {exit: nspawn.Exit{Code: 137, Signal: 9, OOMKilled: true}, want: drivers.ExitResult{ExitCode: 137, Signal: 9, OOMKilled: true}, text: "OOM killed: the task ran out of memory"},
		"name of what was killed": {
			exit: nspawn.Exit{Code: 255, OOMKilled: true, Killed: "java\x1b"}, want: drivers.ExitResult{ExitCode: 255, OOMKilled: true},
			text: `OOM killed: the task ran out of memory, and the kernel killed its process java\x1b`,
		},
		"lost":            {err: lost, want: drivers.ExitResult{}, text: "unit is gone"},
		"killed and lost": {exit: nspawn.Exit{OOMKilled: true}, err: lost, want: drivers.ExitResult{OOMKilled: true}, text: "unit is gone"},
	} {
		t.Run(name, func(t *testing.T) {
			got := exitResult(c.exit, c.err)
			if c.text == "" {
				must.NoError(t, got.Err)
			} else {
				must.EqError(t, got.Err, c.text)
			}
			must.Eq(t, c.text == "" && c.want.ExitCode == 0 && c.want.Signal == 0, got.Successful())
			got.Err = nil
			must.Eq(t, &c.want, got)
		})
	}
}
