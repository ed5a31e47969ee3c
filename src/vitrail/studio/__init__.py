"""The studio: a page of our own over the native API, and the few routes that only the page needs.

The page is plain ES modules without a build step (``assets/``). Gradio was measured first: importing it alone
takes longer than the two seconds in which the page must be usable, its templates name addresses outside the
machine, and its inline scripts need a Content-Security-Policy under which script in a prompt could run.
"""
