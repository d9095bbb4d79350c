// Command measure is the part of the bench that runs in the host.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
)

type options struct {
	plugin, image, payload, big, layout, unpack string
	runs, tasks                                 int
	check                                       bool
}

func main() {
	var opts options
	flag.StringVar(&opts.plugin, "plugin", "", "`path` of the plugin")
	flag.StringVar(&opts.image, "image", "", "`directory` with a busybox system")
	flag.StringVar(&opts.payload, "payload", "", "`path` of the payload")
	flag.StringVar(&opts.big, "big", "", "`directory` with a big system and the payload")
	flag.StringVar(&opts.layout, "layout", "", "`directory` that is an OCI layout of it, with the tag 1")
	flag.StringVar(&opts.unpack, "unpack", "", "only unpack the layout, in this `directory`; needs no host")
	flag.IntVar(&opts.runs, "runs", 20, "`number` of times that each start and exec is measured")
	flag.IntVar(&opts.tasks, "tasks", 50, "`number` of tasks that run at once")
	flag.BoolVar(&opts.check, "check", false, "fail if a target is missed")
	flag.Parse()
	if err := run(context.Background(), opts); err != nil {
		fmt.Fprintln(os.Stderr, "measure:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, opts options) error {
	r := &report{out: os.Stdout}
	measureAll := measureInHost
	if opts.unpack != "" {
		measureAll = measureUnpack
	}
	if err := measureAll(ctx, opts, r); err != nil {
		return err
	}
	if opts.check && len(r.missed) > 0 {
		return errors.New(strings.Join(r.missed, "; "))
	}
	return nil
}

// measureInHost does not clean up, because the host is removed afterwards.
func measureInHost(ctx context.Context, opts options, r *report) error {
	if err := makeImage(ctx, opts); err != nil {
		return err
	}
	machine, err := describeMachine(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("# %s; %d runs, %d tasks\n", machine, opts.runs, opts.tasks)
	p, err := launch(ctx, opts.plugin)
	if err != nil {
		return err
	}
	defer p.client.Kill()
	for _, measurement := range []func(context.Context, *plugin, options, *report) error{
		measureIdle, measureStarts, measureMounts, measureExec, measureMany, measurePulls,
	} {
		if err := measurement(ctx, p, opts, r); err != nil {
			return err
		}
	}
	return nil
}

// measureIdle runs first, when the plugin has done nothing but inspect the host.
func measureIdle(_ context.Context, p *plugin, _ options, r *report) error {
	rss, err := readKilobytes(p.pid, "status", "VmRSS")
	if err != nil {
		return err
	}
	return r.add("plugin_rss_idle", "MB", rss/1024)
}
