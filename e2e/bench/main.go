// Command bench compares the plugin with bare systemd-nspawn on a disposable
// host. It prints a line that starts with # and describes the machine, and then
// one line per figure, `name median min max unit`:
//
//	plugin_rss_idle    the plugin, before its first task
//	start_bare         exec of systemd-nspawn -D, in a scope of its own as by hand, to
//	                   the payload's first instruction
//	start_child        the same with --keep-unit --register=no: systemd has no part in it
//	start_same         StartTask to the same, with the same options
//	start_default      the same by the driver's defaults: a user namespace and a
//	                   copy-on-write root
//	start_ratio        start_same by start_bare, of runs one after the other
//	start_cow_ratio    start_default by start_bare
//	start_child_ratio, start_cow_child_ratio   both by start_child
//	start_image_size_ratio   start_default of an image of 300 MB by one of 2 MB
//	start_mounts       start_default with 400 more mounts on the host
//	start_mounts_ratio   that by start_default
//	start_…_call       until StartTask has returned
//	exec_nsenter       `nsenter --all true`, which confines nothing
//	exec_task, exec_streaming   `true` through the plugin
//	task_nspawn_…, task_stub_…, task_added_…   memory of a task's systemd-nspawn,
//	                   of its stub init, and of all processes but the payload
//	extra_processes    of all tasks together: neither payload nor those two
//	stats_…_cpu        share of one core while all tasks report their usage each second
//	plugin_rss_tasks, plugin_rss_after   with all tasks, and after them
//	plugin_files_left  files that the plugin still has open after them
//	pull_one, pull_parallel   start of an image that has to be pulled from a
//	                   registry, 300 MB: of one task, and of the last of 20
//	pull_parallel_downloads   how often the 20 fetched a layer
//	unpack_pull        the plugin's own pull of the same from an OCI layout
//	unpack_umoci       skopeo copy of it, and umoci unpack
//
// Figures of two runs can be compared only if nothing else keeps the machine
// busy. Ratios are less affected.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"

	"nomad-driver-nspawn/e2e/host"
)

// The paths in the host of what the bench brings along.
const (
	toolsDir   = "/srv/bench"
	pluginPath = "/srv/nomad-driver-nspawn"
	imageDir   = "/srv/busybox"
	layoutDir  = "/srv/layout"
	bigTree    = "/var/lib/machines/big"
)

type options struct {
	suite, plugin string
	runs, tasks   int
	check         bool
}

func main() {
	var opts options
	flag.StringVar(&opts.suite, "suite", host.Released[0], "Debian `release` of the host")
	flag.StringVar(&opts.plugin, "plugin", "build/nomad-driver-nspawn", "`path` of the plugin")
	flag.IntVar(&opts.runs, "runs", 20, "`number` of times that each start and exec is measured")
	flag.IntVar(&opts.tasks, "tasks", 50, "`number` of tasks that run at once, for memory and stats")
	flag.BoolVar(&opts.check, "check", false, "fail if a target is missed")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, opts)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run boots a host, measures in it and takes it down.
func run(ctx context.Context, opts options) (err error) {
	plugin, err := filepath.Abs(opts.plugin)
	if err != nil {
		return err
	}
	if _, err := os.Stat(plugin); err != nil {
		return fmt.Errorf("find the plugin (make build makes it): %w", err)
	}
	dir, err := os.MkdirTemp("/var/tmp", "nomad-driver-nspawn-bench-") // where files can be ID-mapped
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	tools, tree, layout := filepath.Join(dir, "tools"), filepath.Join(dir, "tree"), filepath.Join(dir, "layout")
	if err := buildTools(ctx, tools); err != nil {
		return err
	}
	if err := makeBigTree(ctx, tree, filepath.Join(tools, "payload")); err != nil {
		return err
	}
	if err := makeLayout(ctx, layout, tree); err != nil {
		return err
	}
	image, err := host.BusyboxImage(ctx)
	if err != nil {
		return err
	}
	h, err := host.Up(ctx, host.Options{Suite: opts.suite, Binds: []host.Bind{
		{Source: tools, Target: toolsDir, ReadOnly: true},
		{Source: plugin, Target: pluginPath, ReadOnly: true},
		{Source: image, Target: imageDir, ReadOnly: true},
		{Source: tree, Target: bigTree, ReadOnly: true},
		{Source: layout, Target: layoutDir, ReadOnly: true},
	}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.Down()) }()
	if err := measure(ctx, h, opts); err != nil {
		return err
	}
	return measureUnpack(ctx, tools, layout, dir, opts)
}

// buildTools builds the programs that run in the host and in the machine. They are static,
// so that the C library does not matter, and share the cache of make build.
func buildTools(ctx context.Context, dir string) error {
	const module = "nomad-driver-nspawn/e2e/bench/"
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", dir+"/", module+"measure", module+"payload")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build the tools of the bench: %w", err)
	}
	return nil
}

func measure(ctx context.Context, h *host.Host, opts options) error {
	cmd := h.Command(ctx, toolsDir+"/measure",
		"-plugin", pluginPath, "-image", imageDir, "-big", bigTree, "-layout", layoutDir, "-payload", toolsDir+"/payload",
		"-runs", strconv.Itoa(opts.runs), "-tasks", strconv.Itoa(opts.tasks),
		"-check="+strconv.FormatBool(opts.check))
	return tell(ctx, cmd)
}

// measureUnpack runs on this machine, which has Debian's packages.
func measureUnpack(ctx context.Context, tools, layout, scratch string, opts options) error {
	if err := host.Install(ctx, map[string]string{"/usr/bin/skopeo": "skopeo", "/usr/bin/umoci": "umoci"}); err != nil {
		return err
	}
	return tell(ctx, exec.CommandContext(ctx, filepath.Join(tools, "measure"),
		"-unpack", scratch, "-layout", layout, "-check="+strconv.FormatBool(opts.check)))
}

// tell runs a part of the bench and prints its output.
func tell(ctx context.Context, cmd *exec.Cmd) error {
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	if err != nil {
		return fmt.Errorf("measure: %w", err)
	}
	return nil
}
