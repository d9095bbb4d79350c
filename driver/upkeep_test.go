package driver

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/hashicorp/nomad/helper/testlog"
	"github.com/hashicorp/nomad/helper/uuid"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/driver/operator"
	"nomad-driver-nspawn/driver/upkeep"
	"nomad-driver-nspawn/nspawn"
	"nomad-driver-nspawn/nspawn/dirs"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/systemd"
	"nomad-driver-nspawn/nspawn/systemd/systemdtest"
)

// TestStartThatWasNotUndone checks that what a failed start could not undo, for example
// because the bus was away, is removed soon. If everything was undone, nothing may be
// remembered of it.
func TestStartThatWasNotUndone(t *testing.T) {
	fake := systemdtest.New(t)
	machines := nspawn.NewManager(fake.Conn(), dirs.Dirs{Run: t.TempDir(), State: t.TempDir()}, nil)
	d := &Driver{ctx: t.Context(), logger: testlog.HCLogger(t), machines: machines, config: operator.Config{DisableLogCollection: true}}
	d.reaper = upkeep.NewReaper(machines, d.tasks.known, d.logger)
	alloc := uuid.Generate()
	cfg := &drivers.TaskConfig{ID: alloc + "/web/1", AllocID: alloc, Name: "web", AllocDir: t.TempDir()}
	unit := machine.UnitName(machine.Name(alloc, "web"))
	must.NoError(t, fake.Conn().StartTransientUnit(t.Context(), unit, []systemd.Property{}))
	fake.Exit(unit, 0)
	task := parseTask(t, `image = "missing/"`)
	must.NoError(t, cfg.EncodeConcreteDriverConfig(&task))
	_, _, err := d.StartTask(cfg)
	must.Error(t, err)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go d.reaper.Run(ctx, operator.DanglingMachines{Enabled: true, Period: "1h", CreationGrace: "1h"})
	for state := range fake.Conn().WatchUnit(ctx, unit) {
		if state.LoadState == "not-found" {
			return
		}
	}
}

// TestUpkeepEndsWithTheAgent checks that a plugin without an agent leaves the host alone.
// The bubble ends only when everything has ended that was started in it.
func TestUpkeepEndsWithTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &Driver{ctx: context.Background(), logger: testlog.HCLogger(t), config: operator.DefaultConfig()}
		d.config.Enabled = false
		d.reaper = upkeep.NewReaper(d.machines, d.tasks.known, d.logger)
		ctx, cancel := context.WithCancel(t.Context())
		fingerprints, err := d.Fingerprint(ctx)
		must.NoError(t, err)
		<-fingerprints
		cancel()
		for range fingerprints {
		}
	})
}
