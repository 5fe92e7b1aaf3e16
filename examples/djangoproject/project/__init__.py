"""A Django project whose settings page is a durable dict.

With memcached on this machine, or another cache in `DEMO_CACHE`::

    pip install 'durabledict[django,memcached]'
    python manage.py migrate
    python manage.py runserver 8000
    python manage.py runserver 8001    # in another terminal

What is changed at http://127.0.0.1:8000/settings/ shows at http://127.0.0.1:8001/ at the next
request. `make demo BACKEND=django` does that by itself.
"""
