package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/nomad/plugins/shared/hclspec"

	"nomad-driver-nspawn/nspawn"
)

// DanglingMachines configures the reaper of machines whose tasks Nomad no
// longer knows, as docker's dangling_containers.
type DanglingMachines struct {
	Enabled       bool   `codec:"enabled"`
	Period        string `codec:"period"`
	CreationGrace string `codec:"creation_grace"`
	DryRun        bool   `codec:"dry_run"`
}

var danglingSpec = hclspec.NewDefault(
	hclspec.NewBlock("dangling_machines", false, hclspec.NewObject(map[string]*hclspec.Spec{
		"enabled":        withDefault("enabled", "bool", "true"),
		"period":         withDefault("period", "string", `"5m"`),
		"creation_grace": withDefault("creation_grace", "string", `"5m"`),
		"dry_run":        withDefault("dry_run", "bool", "false"),
	})),
	hclspec.NewLiteral(`{ enabled = true, period = "5m", creation_grace = "5m", dry_run = false }`),
)

func (c DanglingMachines) validate() error {
	if !c.Enabled {
		return nil
	}
	return errors.Join(
		positive("dangling_machines.period", c.Period),
		positive("dangling_machines.creation_grace", c.CreationGrace),
	)
}

func positive(at, value string) error {
	if d, err := time.ParseDuration(value); err != nil || d <= 0 {
		return fmt.Errorf("%s: %q is not a positive duration, as 5m", at, value)
	}
	return nil
}

// reaper looks for dangling machines.
type reaper struct {
	began time.Time     // of the plugin: it may still recover machines that are older
	wake  chan struct{} // poked when a removal has failed
	// The machines whose removal has failed, and since when: Nomad does not ask again.
	unfinished sync.Map
}

// again has a removal that may have failed tried again, soon.
func (r *reaper) again(machine string) {
	r.unfinished.Store(machine, time.Now())
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// spare is for a machine that is to be started again.
func (r *reaper) spare(machine string) { r.unfinished.Delete(machine) }

// forget gives up machines whose removal had failed before the records were taken
// if nothing is left of them.
func (r *reaper) forget(unfinished map[any]any, records []nspawn.Record) {
	for _, record := range records {
		delete(unfinished, record.Machine)
	}
	for machine, since := range unfinished {
		r.unfinished.CompareAndDelete(machine, since)
	}
}

// retryPeriod is after how long a removal that has failed is tried again, at
// first.
const retryPeriod = time.Second

// reap removes dangling machines until ctx ends, period after period, and soon
// after a removal has failed. Nothing tells of an allocation that Nomad has
// forgotten, so they have to be looked for.
func (d *Driver) reap(ctx context.Context) {
	config := d.policy().DanglingMachines
	if !config.Enabled {
		return
	}
	period := duration(config.Period)
	// Files that a killed plugin has left are nobody's.
	wait := min(retryPeriod, period)
	for {
		select {
		case <-time.After(wait):
			err := d.reapOnce(ctx, config)
			if err != nil && ctx.Err() == nil {
				d.logger.Warn("remove dangling machines", "error", err)
				wait = min(2*wait, period)
			} else {
				wait = period
			}
		case <-d.reaper.wake:
			wait = min(retryPeriod, period)
		case <-ctx.Done():
			return
		}
	}
}

func (d *Driver) reapOnce(ctx context.Context, config DanglingMachines) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	unfinished := maps.Collect(d.reaper.unfinished.Range)
	records, err := d.machines.Machines(ctx)
	if err != nil {
		return err
	}
	d.reaper.forget(unfinished, records)
	grace := duration(config.CreationGrace)
	machines, nodes := d.tasks.known()
	var errs []error
	for _, record := range records {
		if machines[record.Machine] || !d.dangling(record, nodes, time.Now().Add(-grace)) {
			continue
		}
		d.logger.Info("dangling machine: Nomad has no task for it", "machine", record.Machine, "dry_run", config.DryRun)
		if config.DryRun {
			continue
		}
		err := d.machines.RemoveDangling(ctx, record)
		if err == nil {
			d.reaper.spare(record.Machine)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// dangling says whether a machine that is of no task we know is nobody's. Nomad
// has wanted it to be removed; or it has no unit, so that it does not run, and who
// starts it has it locked; or it was started before a time, was not recovered
// until then, and is of our node or of an allocation that Nomad has removed.
// Another client on this host has another node; before our first task we do not
// know ours.
func (d *Driver) dangling(record nspawn.Record, nodes map[string]bool, before time.Time) bool {
	if _, ok := d.reaper.unfinished.Load(record.Machine); ok || record.Invocation == "" {
		return true
	}
	if !record.Started.Before(before) || !d.reaper.began.Before(before) {
		return false
	}
	node, dir := record.Fields["NOMAD_NODE_ID"], record.Fields[allocDirField]
	return node != "" && nodes[node] || dir != "" && missing(dir)
}

func missing(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, os.ErrNotExist)
}
