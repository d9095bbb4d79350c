package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/systemd"
)

// moreMounts is the number of mounts on a host with many containers of other tools.
const moreMounts = 400

// The mounts are in a directory, which determines the names of their units.
const (
	mountsDir = "/run/bench"
	lastMount = "run-bench-399.mount"
)

// mountTurns is how often the mounts are made and removed.
const mountTurns = 4

// measureMounts compares starts with and without additional mounts on the host.
func measureMounts(ctx context.Context, p *plugin, opts options, r *report) error {
	runs := max(opts.runs/mountTurns, 1)
	few, many := &way{name: "start_default", run: p.starter(nil)}, &way{name: "start_mounts", run: p.starter(nil)}
	bus := systemd.New(systemd.SystemBus)
	defer bus.Close()
	for range mountTurns {
		if err := takeTurnsAfter(ctx, 1, runs, few); err != nil {
			return err
		}
		if err := mountMore(ctx, bus); err != nil {
			return err
		}
		if err := takeTurnsAfter(ctx, 1, runs, many); err != nil {
			return err
		}
		if err := unmountMore(ctx, bus); err != nil {
			return err
		}
	}
	return errors.Join(
		r.add("start_mounts", "ms", many.firsts...),
		r.add("start_mounts_ratio", "x", ratios(many.firsts, few.firsts)...),
	)
}

func mountMore(ctx context.Context, bus *systemd.Conn) error {
	for i := range moreMounts {
		dir := filepath.Join(mountsDir, strconv.Itoa(i))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	return settle(ctx, bus, "active")
}

func unmountMore(ctx context.Context, bus *systemd.Conn) error {
	for i := range moreMounts {
		if err := unix.Unmount(filepath.Join(mountsDir, strconv.Itoa(i)), 0); err != nil {
			return fmt.Errorf("unmount %d: %w", i, err)
		}
	}
	return settle(ctx, bus, "inactive")
}

// settle returns when systemd has noticed the last change.
func settle(ctx context.Context, bus *systemd.Conn, state string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for unit := range bus.WatchUnit(ctx, lastMount) {
		if unit.ActiveState == state {
			return nil
		}
	}
	return fmt.Errorf("wait until %s is %s: %w", lastMount, state, ctx.Err())
}
