"""The routes, by what they concern. Each has one rule of `admin.access` among its dependencies."""
