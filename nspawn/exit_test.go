package nspawn

import (
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn/systemd"
)

func TestEnded(t *testing.T) {
	for _, c := range []struct {
		unit  systemd.UnitState
		exit  Exit
		ended bool
	}{
		{systemd.UnitState{ActiveState: "active", SubState: "running"}, Exit{}, false},
		{systemd.UnitState{ActiveState: "activating", SubState: "start"}, Exit{}, false},
		{systemd.UnitState{ActiveState: "activating", SubState: "auto-restart", ExecMainCode: 1, ExecMainStatus: 133}, Exit{}, false},
		{systemd.UnitState{ActiveState: "deactivating", SubState: "stop-sigterm"}, Exit{}, false},
		{systemd.UnitState{ActiveState: "active", SubState: "exited", ExecMainCode: 1}, Exit{}, true},
		{systemd.UnitState{ActiveState: "failed", SubState: "failed", ExecMainCode: 1, ExecMainStatus: 7}, Exit{Code: 7}, true},
		{systemd.UnitState{ActiveState: "failed", SubState: "failed", ExecMainCode: 2, ExecMainStatus: 9}, Exit{Code: 137, Signal: 9}, true},
		{systemd.UnitState{ActiveState: "failed", SubState: "failed", Result: "oom-kill", ExecMainCode: 1, ExecMainStatus: 255}, Exit{Code: 255, OOMKilled: true}, true},
	} {
		exit, ok := ended(c.unit)
		must.Eq(t, c.ended, ok, must.Sprintf("%+v", c.unit))
		must.Eq(t, c.exit, exit, must.Sprintf("%+v", c.unit))
	}
}
