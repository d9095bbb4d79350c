package download

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"nomad-driver-nspawn/nspawn/image/fetch"
)

// ErrTemporary is matched by errors after which another attempt may succeed: the
// connection failed or broke, the file was truncated, the server is busy or broken (408,
// 425, 429, 5xx), or a time limit of Client has passed. All other errors are permanent.
var ErrTemporary = fetch.ErrTemporary

// errAbsent is matched by errors that mean that a file does not exist.
var errAbsent = errors.New("file is not there")

// errRedirect marks a redirect that is not followed.
var errRedirect = errors.New("redirect refused")

// status is the status of an unexpected response.
type status int

func (s status) Error() string {
	text := strings.TrimSpace(fmt.Sprintf("the server answered %d %s", int(s), http.StatusText(int(s))))
	switch int(s) {
	case http.StatusUnauthorized:
		text += ": it wants a user and password, or others, in the URL"
	case http.StatusForbidden:
		text += ": it wants other credentials, or there is no such file"
	case http.StatusNotFound, http.StatusGone:
		text += ": check the URL"
	}
	return text
}

// Is also treats 403 as a missing file: S3 returns it for a missing file if the client
// may not list the bucket (GetObject, "Permissions").
func (s status) Is(target error) bool {
	switch target {
	case errAbsent:
		return slices.Contains([]status{http.StatusForbidden, http.StatusNotFound, http.StatusGone}, s)
	case ErrTemporary:
		return s >= 500 || slices.Contains([]status{http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests}, s)
	}
	return false
}

// explain returns the reason why a request, or reading its response, has failed.
func explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	// A url.Error contains the URL, and after a redirect it may contain a secret.
	var outer *url.Error
	if errors.As(err, &outer) {
		err = outer.Err
	}
	if isPermanent(err) {
		return err
	}
	return fetch.Temporary(err)
}

// isPermanent reports whether a request would fail however often it is repeated.
func isPermanent(err error) bool {
	var name *net.DNSError
	return errors.Is(err, errRedirect) || fetch.Untrusted(err) || errors.As(err, &name) && name.IsNotFound
}
