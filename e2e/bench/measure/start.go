package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// measureStarts compares the plugin with bare systemd-nspawn, from the call to
// the payload's first instruction.
func measureStarts(ctx context.Context, p *plugin, opts options, r *report) error {
	// bare has a unit of its own, like the plugin's machines: a scope registered with
	// machined.
	bare := &way{name: "start_bare", run: startBare()}
	// child has none: it is just a child process of its caller.
	child := &way{name: "start_child", run: startBare("--keep-unit", "--register=no")}
	// same does what bare nspawn does: the image itself, read-only, with the host's users.
	same := &way{name: "start_same", run: p.starter(map[string]any{
		"ephemeral": false, "read_only": true, "user_namespacing": false, "resolv_conf": "off",
	})}
	// defaults have a user namespace and a copy-on-write root.
	defaults := &way{name: "start_default", run: p.starter(nil)}
	big := &way{name: "start_big", run: p.starter(map[string]any{"image": opts.big})}
	if err := takeTurns(ctx, opts.runs, bare, child, same, defaults, big); err != nil {
		return err
	}
	return errors.Join(
		r.add("start_bare", "ms", bare.firsts...),
		r.add("start_child", "ms", child.firsts...),
		r.add("start_same", "ms", same.firsts...),
		r.add("start_default", "ms", defaults.firsts...),
		r.add("start_ratio", "x", ratios(same.firsts, bare.firsts)...),
		r.add("start_cow_ratio", "x", ratios(defaults.firsts, bare.firsts)...),
		r.add("start_child_ratio", "x", ratios(same.firsts, child.firsts)...),
		r.add("start_cow_child_ratio", "x", ratios(defaults.firsts, child.firsts)...),
		r.add("start_image_size_ratio", "x", ratios(big.firsts, defaults.firsts)...),
		r.add("start_same_call", "ms", same.calls...),
		r.add("start_default_call", "ms", defaults.calls...),
	)
}

// starter returns a way to start the payload through the plugin, with the host's network.
func (p *plugin) starter(options map[string]any) func(context.Context) (sample, error) {
	block := map[string]any{"image": imageDir, "command": payloadPath, "network_veth": false}
	maps.Copy(block, options)
	return func(ctx context.Context) (sample, error) {
		t, err := p.newTask(block)
		if err != nil {
			return sample{}, err
		}
		begin, err := now()
		if err != nil {
			return sample{}, err
		}
		if err := t.start(); err != nil {
			return sample{}, err
		}
		end, err := now()
		if err != nil {
			return sample{}, err
		}
		line, err := t.readLine()
		if err != nil {
			return sample{}, err
		}
		first, err := parseStamp(line)
		if err != nil {
			return sample{}, err
		}
		s := sample{call: end - begin, first: first - begin}
		return s, errors.Join(t.wait(ctx), t.destroy())
	}
}

// bareCommand returns systemd-nspawn with the options that the driver gives it for the
// same task, except for those that come from Nomad.
func bareCommand(ctx context.Context, options ...string) *exec.Cmd {
	args := slices.Concat([]string{
		"--quiet", "--settings=no",
		"--machine=bare", "--directory=" + imageDir, "--read-only", "--as-pid2", "--console=pipe",
		"--private-users=no", "--resolv-conf=off", "--timezone=off", "--link-journal=no",
	}, options, []string{"--", payloadPath})
	return exec.CommandContext(ctx, "systemd-nspawn", args...)
}

func startBare(options ...string) func(context.Context) (sample, error) {
	return func(ctx context.Context) (sample, error) {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		return timeBare(bareCommand(ctx, options...))
	}
}

func timeBare(cmd *exec.Cmd) (sample, error) {
	var complaint strings.Builder
	cmd.Stderr = &complaint
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return sample{}, err
	}
	begin, err := now()
	if err != nil {
		return sample{}, err
	}
	if err := cmd.Start(); err != nil {
		return sample{}, fmt.Errorf("start systemd-nspawn: %w", err)
	}
	line, readErr := bufio.NewReader(stdout).ReadString('\n')
	if errors.Is(readErr, io.EOF) {
		readErr = nil // nspawn's exit status says more
	}
	if err := errors.Join(readErr, cmd.Wait()); err != nil {
		return sample{}, fmt.Errorf("run systemd-nspawn: %w: %s", err, complaint.String())
	}
	first, err := parseStamp(strings.TrimSpace(line))
	return sample{first: first - begin}, err
}

// now returns CLOCK_MONOTONIC, which is also the payload's clock.
func now() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0, fmt.Errorf("read clock: %w", err)
	}
	return time.Duration(t.Nano()), nil
}

// parseStamp parses the time stamp that the payload prints.
func parseStamp(told string) (time.Duration, error) {
	nanoseconds, err := strconv.ParseInt(told, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("parse the payload's time stamp: %w", err)
	}
	return time.Duration(nanoseconds), nil
}
