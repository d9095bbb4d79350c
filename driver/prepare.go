package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/hashicorp/nomad/plugins/drivers"

	"nomad-driver-nspawn/driver/job"
	"nomad-driver-nspawn/driver/operator"
	"nomad-driver-nspawn/nspawn/cgroup"
	"nomad-driver-nspawn/nspawn/image"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/network/ports"
)

// prepare decodes the job's options, finds its image and describes its machine. It pulls
// an image only if the job is otherwise correct, and does not pull it again if the machine
// is already running.
func (d *Driver) prepare(cfg *drivers.TaskConfig, running bool) (task job.TaskConfig, found foundImage, spec machine.Spec, err error) {
	if err := cfg.DecodeDriverConfig(&task); err != nil {
		return task, found, spec, fmt.Errorf("decode config: %w", err)
	}
	task.Translate()
	config := d.currentConfig()
	policy := config.Policy(cfg.Namespace)
	if !task.FromStore() {
		ctx, cancel := context.WithTimeout(d.ctx, callTimeout)
		defer cancel()
		found, err = d.findImage(ctx, policy, task, cfg)
		if bus := (busError{}); errors.As(err, &bus) {
			return task, found, spec, recoverable(err)
		}
		spec, err = describeMachine(policy, task, cfg, found, err)
		return task, found, spec, err
	}
	if running {
		task.PullPolicy = string(image.Missing)
	}
	source, err := task.Source(policy)
	if err == nil {
		source, err = findSource(policy, source, cfg)
	}
	if _, err := describeMachine(policy, task, cfg, found, err); err != nil {
		return task, found, spec, err
	}
	if found, err = d.pull(config, task, cfg, source); err != nil {
		return task, found, spec, err
	}
	if spec, err = describeMachine(policy, task, cfg, found, nil); err != nil {
		found.Release()
	}
	return task, found, spec, err
}

// describeMachine returns the machine of a job, or everything that is wrong with the job
// and, by imageErr, with its image.
func describeMachine(policy operator.Policy, task job.TaskConfig, cfg *drivers.TaskConfig, found foundImage, imageErr error) (machine.Spec, error) {
	dns, err := readHostDNS()
	if err != nil {
		return machine.Spec{}, err
	}
	controllers, err := cgroup.Controllers()
	if err != nil {
		return machine.Spec{}, err
	}
	maxFiles, err := maxOpenFiles()
	if err != nil {
		return machine.Spec{}, err
	}
	spec, err := task.Spec(job.Input{
		Policy: policy, Task: cfg, Image: found.Image, DNS: dns, HostIP: ports.FromNomad,
		Cores: runtime.NumCPU(), Controllers: controllers, MaxFiles: maxFiles,
	})
	if err := errors.Join(err, imageErr); err != nil {
		return spec, fmt.Errorf("config: %w", err)
	}
	if err := resolvePaths(policy, task, &spec, cfg); err != nil {
		return spec, fmt.Errorf("config: %w", err)
	}
	return spec, nil
}

// maxOpenFiles returns the kernel's limit of RLIMIT_NOFILE.
func maxOpenFiles() (uint64, error) {
	text, err := os.ReadFile("/proc/sys/fs/nr_open")
	if err != nil {
		return 0, fmt.Errorf("read how many files a process may open: %w", err)
	}
	most, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read how many files a process may open: %w", err)
	}
	return most, nil
}
