package upkeep

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/plugins/drivers"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/machine"
)

// Share keeps tasks without `cores` off the cores that Nomad has reserved for others. Nomad
// has a control group for them (client/lib/cgroupslib/partition_linux.go), whose cores it
// changes whenever an allocation with reserved cores comes or goes. Our machines cannot be
// in that group, because systemd does not manage it. Share gives its cores to the slice of
// our machines.
type Share struct {
	ctx    context.Context // ends with the plugin
	limit  func(ctx context.Context, cpus []int) error
	logger hclog.Logger

	mu    sync.Mutex
	group string // Nomad's control group; "" until a task has named it
	cores string // the cores that limit was called with
}

// NewShare returns a Share that calls limit with the cores of Nomad's control group.
func NewShare(ctx context.Context, limit func(ctx context.Context, cpus []int) error, logger hclog.Logger) *Share {
	return &Share{ctx: ctx, limit: limit, logger: logger}
}

// Update returns when the limit is up to date, so that a task does not begin on cores of
// others, nor others on its own. The first task without `cores` shows where Nomad's control
// group is. From then on, Share follows its changes.
func (s *Share) Update(ctx context.Context, task *drivers.TaskConfig) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if group := shareOf(task); group != "" && group != s.group {
		if err := s.follow(group); err != nil {
			return err
		}
		s.group = group
	}
	return s.update(ctx)
}

// shareOf returns the control group of the tasks without `cores`, or "" if the task does
// not show it. Nomad makes a group of its own for each task in it.
func shareOf(task *drivers.TaskConfig) string {
	if task.Resources == nil || task.Resources.LinuxResources == nil {
		return ""
	}
	linux := task.Resources.LinuxResources
	if linux.CpusetCpus != "" || linux.CpusetCgroupPath == "" {
		return ""
	}
	group := filepath.Dir(linux.CpusetCgroupPath)
	if _, err := os.Stat(filepath.Join(group, effectiveCores)); err != nil {
		return "" // Nomad has no cpuset controller
	}
	return group
}

// effectiveCores is the file with the cores of a control group (cgroup-v2.rst).
const effectiveCores = "cpuset.cpus.effective"

// update is Update for a caller that has locked mu.
func (s *Share) update(ctx context.Context) error {
	if s.group == "" {
		return nil
	}
	text, err := os.ReadFile(filepath.Join(s.group, effectiveCores))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil // an agent with another group has come
	}
	if err != nil {
		return fmt.Errorf("read the cores that tasks share: %w", err)
	}
	cores := strings.TrimSpace(string(text))
	if cores == s.cores {
		return nil
	}
	cpus, err := machine.ParseCPUs(cores)
	if err == nil {
		err = s.limit(ctx, cpus)
	}
	if err != nil {
		return fmt.Errorf("keep tasks off the cores that are reserved for others: %w", err)
	}
	s.cores = cores
	return nil
}

// follow updates the limit whenever Nomad writes to the control group.
func (s *Share) follow(group string) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("follow the cores that tasks share: %w", err)
	}
	changes := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, filepath.Join(group, "cpuset.cpus"), unix.IN_MODIFY); err != nil {
		changes.Close()
		return fmt.Errorf("follow the cores of %s: %w", group, err)
	}
	stop := context.AfterFunc(s.ctx, func() { changes.Close() })
	go func() {
		defer changes.Close()
		defer stop()
		s.updateAtChanges(group, changes)
	}()
	return nil
}

// updateAtChanges ends if another control group is followed, or with the plugin.
func (s *Share) updateAtChanges(group string, changes *os.File) {
	event := make([]byte, unix.SizeofInotifyEvent+unix.NAME_MAX+1)
	for {
		if _, err := changes.Read(event); err != nil {
			return
		}
		for {
			current, err := s.updateOf(group)
			if !current {
				return
			}
			if err == nil {
				break
			}
			s.logger.Warn("update the cores of tasks, trying again", "error", err)
			select {
			case <-time.After(retryPeriod):
			case <-s.ctx.Done():
				return
			}
		}
	}
}

// updateOf updates the limit if the group is still the followed one.
func (s *Share) updateOf(group string) (current bool, err error) {
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.group != group {
		return false, nil
	}
	return true, s.update(ctx)
}
