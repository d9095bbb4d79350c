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

// result is what the tests have come to.
type result struct {
	passed, failed, skipped int // tests and subtests
	finished                int // packages
}

func (r result) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", r.passed, r.failed, r.skipped)
}

// verdict is an error unless all is well. A skip is not: it hides that
// something the virtual machine was to offer is missing.
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

// follow copies the output of the tests as it comes, line by line, and counts.
// Began is called at the first line. Each package is closed with a line like
// go test's.
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

// finish counts a package whose binary failed without a failed test, by a
// panic for instance, as a failure.
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
