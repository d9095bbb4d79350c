package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"
)

// result is the result of the tests.
type result struct {
	passed, failed, skipped int // tests and subtests
	finished                int // packages
}

func (r result) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", r.passed, r.failed, r.skipped)
}

// verdict returns an error unless all tests passed. A skipped test is an error: it means
// that the virtual machine lacks something it should have.
func (r result) verdict() error {
	switch {
	case r.failed > 0:
		return errors.New("tests failed")
	case r.skipped > 0:
		return errors.New("tests were skipped")
	case r.passed == 0:
		return errors.New("no test was run")
	}
	return nil
}

var testLine = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): `)

// follow copies the output of the tests line by line as it arrives, and counts. It calls
// began at the first line. It ends each package with a line like go test's.
func (r *result) follow(from io.Reader, to io.Writer, began func()) error {
	lines := bufio.NewReader(from)
	pkg, start, failedBefore := "", time.Now(), 0
	for first := true; ; first = false {
		line, readErr := lines.ReadString('\n')
		if first && line != "" {
			began()
		}
		if name, ok := strings.CutPrefix(line, beginMark); ok {
			pkg, start, failedBefore = strings.TrimSpace(name), time.Now(), r.failed
			line = ""
		} else if rest, status, ok := strings.Cut(line, endMark); ok { // rest: a last line without an end
			line = rest + r.finish(pkg, strings.TrimSpace(status), time.Since(start), failedBefore)
		} else {
			r.count(line)
		}
		if _, err := io.WriteString(to, line); err != nil {
			return fmt.Errorf("write the tests' output: %w", err)
		}
		if errors.Is(readErr, io.EOF) {
			return nil
		}
		if readErr != nil {
			return fmt.Errorf("read the tests' output: %w", readErr)
		}
	}
}

func (r *result) count(line string) {
	m := testLine.FindStringSubmatch(line)
	if m == nil {
		return
	}
	switch m[1] {
	case "PASS":
		r.passed++
	case "FAIL":
		r.failed++
	case "SKIP":
		r.skipped++
	}
}

// finish counts a package as a failure if its binary failed without a failed test, for
// example because of a panic.
func (r *result) finish(pkg, status string, took time.Duration, failedBefore int) string {
	r.finished++
	verdict := "ok  "
	if status != "0" {
		verdict = "FAIL"
		if r.failed == failedBefore {
			r.failed++
		}
	}
	return fmt.Sprintf("%s\t%s\t%.3fs\n", verdict, pkg, took.Seconds())
}
