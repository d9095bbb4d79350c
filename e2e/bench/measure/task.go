package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/nomad/helper/uuid"
	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/hashicorp/nomad/plugins/drivers"
	"golang.org/x/sys/unix"
)

// allocsDir contains the directories of the allocations.
const allocsDir = "/var/lib/nomad/bench"

// patience limits every wait for a payload. It is far more than any payload needs.
const patience = time.Minute

// task is a task as Nomad would make it.
type task struct {
	plugin *plugin
	config *drivers.TaskConfig
	stdout *os.File // our end
	stderr *os.File
}

// newTask makes an allocation with one task, whose config is block.
func (p *plugin) newTask(block map[string]any) (*task, error) {
	alloc, name := uuid.Generate(), "bench"
	t := &task{plugin: p, config: &drivers.TaskConfig{
		ID:      alloc + "/" + name + "/" + uuid.Short(),
		AllocID: alloc, Name: name, Namespace: "default",
		JobID: "bench", JobName: "bench", TaskGroupName: "bench",
		AllocDir: filepath.Join(allocsDir, alloc),
		Env: map[string]string{
			"NOMAD_ALLOC_DIR": "/alloc", "NOMAD_TASK_DIR": "/local", "NOMAD_SECRETS_DIR": "/secrets",
			"NOMAD_ALLOC_ID": alloc, "NOMAD_TASK_NAME": name,
			"PATH": "/usr/local/bin:/usr/bin:/bin",
		},
		Resources: &drivers.Resources{
			NomadResources: &structs.AllocatedTaskResources{
				Cpu:    structs.AllocatedCpuResources{CpuShares: 100},
				Memory: structs.AllocatedMemoryResources{MemoryMB: 64},
			},
			LinuxResources: &drivers.LinuxResources{CPUShares: 100, MemoryLimitBytes: 64 << 20},
		},
	}}
	options, err := withDefaults(p.schema, block)
	if err != nil {
		return nil, fmt.Errorf("task config: %w", err)
	}
	if err := t.config.EncodeConcreteDriverConfig(options); err != nil {
		return nil, fmt.Errorf("encode task config: %w", err)
	}
	return t, t.makeDirs()
}

func (t *task) makeDirs() (err error) {
	dirs := t.config.TaskDir()
	for _, dir := range []string{
		dirs.LogDir, filepath.Join(dirs.SharedAllocDir, "data"), filepath.Join(dirs.SharedAllocDir, "tmp"), dirs.LocalDir, dirs.SecretsDir,
	} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	t.config.StdoutPath = filepath.Join(dirs.LogDir, ".bench.stdout.fifo")
	t.config.StderrPath = filepath.Join(dirs.LogDir, ".bench.stderr.fifo")
	if t.stdout, err = makeFIFO(t.config.StdoutPath); err != nil {
		return err
	}
	t.stderr, err = makeFIFO(t.config.StderrPath)
	return err
}

// makeFIFO also opens the FIFO. With O_RDWR, there is no end of file before the first
// writer. With O_NONBLOCK, package os can set deadlines.
func makeFIFO(path string) (*os.File, error) {
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return nil, fmt.Errorf("make FIFO %s: %w", path, err)
	}
	return os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
}

// start starts the task.
func (t *task) start() error {
	if _, _, err := t.plugin.driver.StartTask(t.config); err != nil {
		return fmt.Errorf("start task: %w", err)
	}
	return nil
}

// readLine returns the first line that the payload writes.
func (t *task) readLine() (string, error) {
	if err := t.stdout.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(t.stdout).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("read the task's stdout: %w; its stderr: %q", err, t.complaint())
	}
	return strings.TrimSpace(line), nil
}

// complaint returns what the payload has written to stderr so far.
func (t *task) complaint() string {
	raw, err := t.stderr.SyscallConn()
	if err != nil {
		return err.Error()
	}
	text := make([]byte, 4096)
	n := 0
	// Read would wait. Control leaves the descriptor nonblocking.
	if err := raw.Control(func(fd uintptr) { n, _ = unix.Read(int(fd), text) }); err != nil {
		return err.Error()
	}
	return string(text[:max(n, 0)])
}

// wait waits for the task's end.
func (t *task) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	results, err := t.plugin.driver.WaitTask(ctx, t.config.ID)
	if err != nil {
		return fmt.Errorf("wait for task: %w", err)
	}
	if result := <-results; result.Err != nil || result.ExitCode != 0 {
		return fmt.Errorf("wait for task: exit code %d, %w; its stderr: %q", result.ExitCode, result.Err, t.complaint())
	}
	return nil
}

// destroy ends the task, if it is running, and removes the allocation.
func (t *task) destroy() error {
	if err := t.plugin.driver.DestroyTask(t.config.ID, true); err != nil {
		return fmt.Errorf("destroy task: %w", err)
	}
	t.stdout.Close()
	t.stderr.Close()
	return os.RemoveAll(t.config.AllocDir)
}
