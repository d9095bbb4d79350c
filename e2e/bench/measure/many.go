package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

const (
	statsInterval = time.Second // Nomad's default
	statsTime     = 20 * time.Second
)

// measureMany runs many tasks at once. It measures the memory of each, the cost of Nomad's
// queries for their usage, and what is left of them in the plugin.
func measureMany(ctx context.Context, p *plugin, opts options, r *report) error {
	before, err := descriptors(p.pid)
	if err != nil {
		return err
	}
	var tasks []*task
	for range opts.tasks {
		t, err := p.startIdle()
		if err != nil {
			return err
		}
		tasks = append(tasks, t)
	}
	if err := measureTasks(ctx, p, tasks, r); err != nil {
		return err
	}
	if err := measureStats(ctx, p, tasks, r); err != nil {
		return err
	}
	for _, t := range tasks {
		if err := t.destroy(); err != nil {
			return err
		}
	}
	return measureLeft(p, before, r)
}

// measureTasks measures the cost of a task in addition to its payload.
func measureTasks(ctx context.Context, p *plugin, tasks []*task, r *report) error {
	helpers, err := children(p.pid)
	if err != nil {
		return err
	}
	extra := len(helpers)
	memory := map[string][]float64{}
	for _, t := range tasks {
		list, err := t.processes(ctx)
		if err != nil {
			return err
		}
		extra += len(list.extra)
		if err := list.addMemory(memory); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(memory)) {
		if err := r.add(name, "MB", memory[name]...); err != nil {
			return err
		}
	}
	return r.add("extra_processes", "processes", float64(extra))
}

// addMemory adds the memory, in MB, of all processes but the payload, by name of the
// figure.
func (p processes) addMemory(memory map[string][]float64) error {
	for name, pids := range map[string][]int{
		"task_nspawn": {p.nspawn},
		"task_stub":   {p.stub},
		"task_added":  append([]int{p.nspawn, p.stub}, p.extra...),
	} {
		for suffix, field := range map[string]string{"_pss": "Pss", "_private_dirty": "Private_Dirty"} {
			var sum float64
			for _, pid := range pids {
				kB, err := readKilobytes(pid, "smaps_rollup", field)
				if err != nil {
					return err
				}
				sum += kB / 1024
			}
			memory[name+suffix] = append(memory[name+suffix], sum)
		}
	}
	return nil
}

// measureStats queries the usage of all tasks, as Nomad does.
func measureStats(ctx context.Context, p *plugin, tasks []*task, r *report) error {
	dbus, err := mainPID(ctx, "dbus.service")
	if err != nil {
		return err
	}
	consumers := []struct {
		name string
		pid  int
	}{{"plugin", p.pid}, {"systemd", 1}, {"dbus", dbus}}
	used := make([]time.Duration, len(consumers))
	begin := time.Now()
	for i, c := range consumers {
		if used[i], err = processorTime(c.pid); err != nil {
			return err
		}
	}
	if err := followStats(ctx, tasks); err != nil {
		return err
	}
	for i, c := range consumers {
		now, err := processorTime(c.pid)
		if err != nil {
			return err
		}
		share := 100 * float64(now-used[i]) / float64(time.Since(begin))
		if err := r.add("stats_"+c.name+"_cpu", "%", share); err != nil {
			return err
		}
	}
	rss, err := readKilobytes(p.pid, "status", "VmRSS")
	if err != nil {
		return err
	}
	return r.add("plugin_rss_tasks", "MB", rss/1024)
}

// followStats fails if a task reports its usage less often than it should, because then
// the measured cost would be too low.
func followStats(ctx context.Context, tasks []*task) error {
	ctx, cancel := context.WithTimeout(ctx, statsTime)
	defer cancel()
	counts := make(chan int)
	for _, t := range tasks {
		usages, err := t.plugin.driver.TaskStats(ctx, t.config.ID, statsInterval)
		if err != nil {
			return fmt.Errorf("ask for usage: %w", err)
		}
		go func() {
			count := 0
			for range usages {
				count++
			}
			counts <- count
		}()
	}
	var errs []error
	for range tasks {
		least := int(statsTime/statsInterval) - 2
		if count := <-counts; count < least {
			errs = append(errs, fmt.Errorf("a task reported its usage %d times in %s, not %d", count, statsTime, least))
		}
	}
	return errors.Join(errs...)
}

// measureLeft counts the plugin's open files when all tasks are gone.
func measureLeft(p *plugin, before float64, r *report) error {
	after, err := descriptors(p.pid)
	if err != nil {
		return err
	}
	rss, err := readKilobytes(p.pid, "status", "VmRSS")
	if err != nil {
		return err
	}
	if err := r.add("plugin_rss_after", "MB", rss/1024); err != nil {
		return err
	}
	return r.add("plugin_files_left", "files", after-before)
}
