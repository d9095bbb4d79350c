package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"nomad-driver-nspawn/e2e/host"
	"nomad-driver-nspawn/e2e/host/hosttest"
)

// testPackage is a package with tests, and its test binary.
type testPackage struct {
	path, dir, binary string
}

// tally counts tests and subtests.
type tally struct{ passed, failed, skipped int }

func (t tally) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", t.passed, t.failed, t.skipped)
}

// verdict returns an error unless all tests passed. A skipped test is an error: it means
// that the host lacks something it should have.
func (t tally) verdict() error {
	if t.failed > 0 || t.skipped > 0 || t.passed == 0 {
		return exitStatus(1)
	}
	return nil
}

// test runs the host tests of packages in a fresh host.
func test(ctx context.Context, args []string) error {
	flags, opts := hostFlags("test")
	race := flags.Bool("race", false, "build the tests with the race detector")
	match := flags.String("run", "^TestHost", "run the tests that match `regexp`")
	count := flags.Int("count", 1, "run each test `n` times, to find those that fail now and then")
	_ = flags.Parse(args) // exits on error
	if flags.NArg() == 0 {
		return errors.New("test: want packages, after the flags")
	}
	work, err := os.MkdirTemp("", "disposable-host-test-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	packages, module, err := buildTests(ctx, work, *race, flags.Args())
	if err != nil {
		return err
	}
	guests, err := bindGuests(ctx)
	if err != nil {
		return err
	}
	opts.Binds = append(opts.Binds, guests...)
	opts.Binds = append(opts.Binds,
		host.Bind{Source: module, Target: module, ReadOnly: true},
		host.Bind{Source: work, Target: work, ReadOnly: true})
	h, err := host.Up(ctx, *opts)
	if err != nil {
		return err
	}
	total := tally{}
	for _, p := range packages {
		if err := p.run(ctx, h, *match, *count, &total); err != nil {
			return errors.Join(err, h.Down())
		}
	}
	fmt.Println(total)
	if err := h.Down(); err != nil {
		return err
	}
	return total.verdict()
}

// bindGuests binds the guest images to the paths that hosttest has for them.
func bindGuests(ctx context.Context) ([]host.Bind, error) {
	var binds []host.Bind
	for _, guest := range []struct {
		make   func(context.Context) (string, error)
		target string
	}{
		{host.BusyboxImage, hosttest.Busybox},
		{host.BusyboxDisk, hosttest.BusyboxDisk},
		{host.DebianImage, hosttest.Debian},
		{host.InitImages, hosttest.Inits},
		{host.MkosiTree, hosttest.MkosiTree},
		{host.MkosiDisk, hosttest.MkosiDisk},
	} {
		image, err := guest.make(ctx)
		if err != nil {
			return nil, err
		}
		binds = append(binds, host.Bind{Source: image, Target: guest.target, ReadOnly: true})
	}
	return binds, nil
}

// pluginName is also the name of the module.
const pluginName = "nomad-driver-nspawn"

// buildTests builds the test binaries of the packages that have tests, and the
// plugin.
func buildTests(ctx context.Context, work string, race bool, patterns []string) ([]testPackage, string, error) {
	format := "{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}\t{{.Dir}}\t{{.Module.Dir}}{{end}}"
	out, err := goTool(ctx, append([]string{"list", "-f", format}, patterns...)...)
	if err != nil {
		return nil, "", err
	}
	var packages []testPackage
	module, shim := "", []string(nil)
	for line := range strings.Lines(out) {
		fields := strings.Split(strings.TrimSpace(line), "\t")
		p := testPackage{fields[0], fields[1], filepath.Join(work, fmt.Sprintf("%d.test", len(packages)))}
		if module == "" {
			module = fields[2]
			if shim, err = host.BuildShim(ctx, work, module); err != nil {
				return nil, "", err
			}
		}
		build := append([]string{"test", "-c", "-o", p.binary}, shim...)
		if race {
			build = append(build, "-race")
		}
		if _, err := goTool(ctx, append(build, p.path)...); err != nil {
			return nil, "", err
		}
		packages = append(packages, p)
	}
	if len(packages) == 0 {
		return nil, "", errors.New("test: none of the packages has tests")
	}
	build := append([]string{"build", "-o", filepath.Join(work, pluginName)}, shim...)
	if race {
		build = append(build, "-race")
	}
	if _, err := goTool(ctx, append(build, pluginName)...); err != nil {
		return nil, "", err
	}
	return packages, module, nil
}

func goTool(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w", args[0], err)
	}
	return string(out), nil
}

// run runs the package's tests in its directory, as go test does, and ends with a line
// like go test's.
func (p testPackage) run(ctx context.Context, h *host.Host, match string, count int, total *tally) error {
	timeout := time.Duration(count) * 10 * time.Minute
	cmd := h.Command(ctx, "env", "--chdir="+p.dir, p.binary, "-test.run", match, "-test.v",
		"-test.count", strconv.Itoa(count), "-test.timeout", timeout.String())
	cmd.Env = append(cmd.Env, "NSPAWN_HOST_TESTS=1", hosttest.PluginVariable+"="+filepath.Join(filepath.Dir(p.binary), pluginName))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start tests of %s: %w", p.path, err)
	}
	failedBefore := total.failed
	if err := total.count(io.TeeReader(out, os.Stdout)); err != nil {
		return fmt.Errorf("read output of %s: %w", p.path, err)
	}
	verdict := "ok  "
	if err := cmd.Wait(); err != nil {
		verdict = "FAIL"
		if total.failed == failedBefore { // a panic or a data race outside of a test
			total.failed++
		}
	}
	fmt.Printf("%s\t%s\t%.3fs\n", verdict, p.path, time.Since(start).Seconds())
	return context.Cause(ctx)
}

var resultLine = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): `)

func (t *tally) count(out io.Reader) error {
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		if m := resultLine.FindStringSubmatch(line); m != nil {
			switch m[1] {
			case "PASS":
				t.passed++
			case "FAIL":
				t.failed++
			case "SKIP":
				t.skipped++
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
